//! The metrics of several steps, read from the device together.

use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::{
    error::{Error, Result},
    memory,
    training::StepMetrics,
};

/// The metrics of one optimizer step: scalars that are still on the device.
pub(in crate::training) struct Outcome {
    /// The mean loss over the samples of the step, `[1]`.
    pub loss: Tensor<1>,
    /// The norm of the gradients before clipping, `[1]`.
    pub grad_norm: Tensor<1>,
    /// The learning rate of the step.
    pub learning_rate: f64,
}

/// The steps since the last record.
pub(in crate::training) struct Interval {
    started: Instant,
    steps: Vec<Outcome>,
}

impl Interval {
    /// An empty interval that starts now.
    pub fn start() -> Self {
        Self { started: Instant::now(), steps: Vec::new() }
    }

    /// Adds a step.
    pub fn add(&mut self, outcome: Outcome) {
        self.steps.push(outcome);
    }

    /// Whether it has no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The metrics of the steps up to `step`.
    ///
    /// Sync point: reading the losses stalls a GPU, so it happens only where they are recorded or saved.
    ///
    /// # Errors
    /// A loss or norm is not finite.
    pub fn read(&self, step: u64, device: &Device) -> Result<StepMetrics> {
        let last = step;
        let host = |tensors: Vec<Tensor<1>>| -> Vec<f32> {
            Tensor::cat(tensors, 0).into_data().into_vec().expect("scalars are f32")
        };
        let losses = host(self.steps.iter().map(|s| s.loss.clone()).collect());
        let norms = host(self.steps.iter().map(|s| s.grad_norm.clone()).collect());
        let first = last + 1 - self.steps.len() as u64;
        for (step, (loss, norm)) in (first..).zip(losses.iter().zip(&norms)) {
            for (what, value) in [("the loss", loss), ("the norm of the gradients", norm)] {
                if !value.is_finite() {
                    return Err(Error::not_finite(step, what).hint(
                        "lower `optimizer.learning_rate` or lengthen `schedule.warmup_steps`; checkpoints are from before this",
                    ));
                }
            }
        }
        Ok(StepMetrics {
            step: last,
            loss: losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64,
            learning_rate: self.steps.last().map_or(0.0, |outcome| outcome.learning_rate),
            grad_norm: norms.last().copied().map_or(0.0, f64::from),
            seconds_per_step: self.started.elapsed().as_secs_f64() / self.steps.len() as f64,
            memory_mib: memory::usage(device).resident_mib(),
            device_memory_mib: memory::device_usage(device).map(|usage| memory::mib(usage.held)),
        })
    }
}
