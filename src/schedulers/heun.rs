//! Heun's method along the ratio of noise to signal: algorithm 1 of Karras et al. 2022 without churn. Each step but the last calls the
//! model twice.

use burn::tensor::Tensor;
use serde_json::json;

use super::{
    Run, Scheduler, SchedulerConfig,
    euler_run::EulerRun,
    sigmas::{Curve, FinalSigma},
};
use crate::error::Result;

/// HeunDiscreteScheduler.
#[derive(Clone, Debug)]
pub struct Heun {
    /// Its calls: the two of a step are at the levels between which it goes.
    run: EulerRun,
    /// After the first call of a step: the slope there, and the latents that it started from.
    begun: Option<(Tensor<4>, Tensor<4>)>,
}

impl Heun {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let no = [json!(false)];
        config.accept(&[("clip_sample", &no), ("sigma_min", &[]), ("sigma_max", &[])])?;
        let run = EulerRun::new(config, steps, Curve::of(config)?, FinalSigma::Zero)?.twice_each();
        Ok(Self { run, begun: None })
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.run.sigmas
    }
}

impl Scheduler for Heun {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    /// A step of Euler's at even calls; at odd ones the same from the same start, with the mean of the slopes at both ends.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let slope = self.run.slope(prediction, index, latents.clone());
        let first = index / 2 * 2;
        let width = self.run.sigmas[first + 1] - self.run.sigmas[first];
        match self.begun.take() {
            None => {
                self.begun = Some((slope.clone(), latents.clone()));
                latents + slope * width
            }
            Some((before, start)) => start + (before + slope) * (width / 2.0),
        }
    }
}
