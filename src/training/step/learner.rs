//! One optimizer step, as used by runs, benchmarks and replayed goldens.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::{
    data::Batch,
    lora::Lora,
    models::{Inputs, Network},
    nn::{Adapters, Parameter, Parameters},
    pipelines::Pipeline,
    rng::Seed,
    training::{
        Activations, Ema,
        objective::{Draw, Example, Objective},
        step::{
            backward::{self, Gradients, Subject, backward_onto},
            optimizer::{AdamW, clipping},
            trainable::{Trainable, TrainableParameters, assign},
        },
    },
};

/// Trainable parameters with their optimizer, and their EMA if there is one.
pub struct Learner {
    pub(in crate::training) trainable: Trainable,
    pub(in crate::training) optimizer: AdamW,
    pub(in crate::training) ema: Option<Ema>,
    activations: Activations,
    /// Dropout of the adapters: a probability, and the seed of the run.
    dropout: (f64, Seed),
}

/// The loss of some samples and its gradients, each summed over the samples, so that batches of different sizes give a mean over all
/// samples of a step.
pub struct Summed {
    /// The loss, `[1]`.
    pub loss: Tensor<1>,
    /// The gradients of all trainable parameters.
    pub gradients: Gradients,
    /// The number of samples.
    pub samples: usize,
}

impl Summed {
    /// The mean gradients of the samples.
    pub fn mean(&self) -> Gradients {
        let mean = |gradient: &Tensor<1>| gradient.clone() / self.samples as f64;
        self.gradients.iter().map(|(name, gradient)| (name.clone(), mean(gradient))).collect()
    }
}

/// The metrics of one optimizer step: scalars that are still on the device.
pub struct Stepped {
    /// The mean loss over the samples of the step, `[1]`.
    pub loss: Tensor<1>,
    /// The norm of the gradients before clipping, `[1]`.
    pub grad_norm: Tensor<1>,
}

impl Learner {
    /// A learner of an adapter, or of the model itself if there is none, without dropout and EMA.
    pub fn new(lora: Option<Lora>, optimizer: AdamW, activations: Activations) -> Self {
        let trainable = lora.map_or(Trainable::Full, Trainable::Lora);
        Self { trainable, optimizer, ema: None, activations, dropout: (0.0, Seed(0)) }
    }

    /// The same for existing trainable parameters, with dropout in their adapters.
    pub(in crate::training) fn of(
        trainable: Trainable,
        optimizer: AdamW,
        activations: Activations,
        dropout: (f64, Seed),
    ) -> Self {
        Self { trainable, optimizer, ema: None, activations, dropout }
    }

    /// The same with an EMA.
    pub fn with_ema(self, ema: Option<Ema>) -> Self {
        Self { ema, ..self }
    }

    /// The adapters; `None` if the model itself is trained.
    pub fn adapters(&self) -> Option<Adapters> {
        self.trainable.adapters()
    }

    /// The EMA.
    pub fn ema(&self) -> Option<&Ema> {
        self.ema.as_ref()
    }

    /// Draws noise and noise levels for a batch; its loss and gradients in optimizer step `step`, added to those of the batches
    /// `before` it in this step.
    pub fn learn<P: Pipeline, O: Objective<P>>(
        &self,
        before: Option<Summed>,
        objective: &O,
        pipeline: &P,
        batch: Batch,
        seed: Seed,
        step: u64,
    ) -> Summed {
        let [rows, moments, height, width] = batch.moments.dims();
        let first = before.as_ref().map_or(0, |before| before.samples) as u64;
        let draw = Draw::new(objective, seed, step, first, [rows, moments / 2, height, width], pipeline.device());
        let example = objective.batch_example(pipeline, batch, draw);
        self.gradients(before, O::model(pipeline), &example, step)
    }

    /// The loss of an example and its gradients in optimizer step `step`, added to those of the batches `before` it in this step.
    pub fn gradients<M: Network>(
        &self,
        before: Option<Summed>,
        model: &M,
        example: &Example<M::Inputs>,
        step: u64,
    ) -> Summed {
        let first_sample = before.as_ref().map_or(0, |before| before.samples) as u64;
        let adapters = self.trainable.adapters().map(|adapters| match self.dropout {
            (0.0, _) => adapters,
            (probability, seed) => adapters.dropping_out(probability, seed, step, first_sample),
        });
        let groups = match self.activations {
            Activations::Blockwise => backward::blockwise(model.len()),
            Activations::Full => backward::full(model.len()),
        };
        let samples = example.inputs.rows();
        let loss = |prediction| example.loss(prediction) * samples as f64;
        let subject = adapters.as_ref().map_or(Subject::Weights, Subject::Adapters);
        let (sum, mut gradients, count) = match before {
            Some(Summed { loss, gradients, samples }) => (Some(loss), gradients, samples),
            None => (None, Gradients::new(), 0),
        };
        let loss = backward_onto(&mut gradients, model, subject, &example.inputs, &groups, loss);
        Summed { loss: sum.map_or(loss.clone(), |sum| sum + loss), gradients, samples: count + samples }
    }

    /// Clips the gradients by their common norm, and updates the parameters and the EMA, in place if nothing else holds the tensors.
    pub fn apply<M: Network>(&mut self, model: &mut M, learning_rate: f64, summed: Summed) -> Stepped {
        let Summed { loss, gradients, samples } = summed;
        let (grad_norm, scale) = clipping(&gradients, 1.0 / samples as f64, self.optimizer.max_grad_norm());
        match &mut self.trainable {
            Trainable::Lora(lora) => self.optimizer.step(learning_rate, lora, gradients, &scale),
            Trainable::Full => self.optimizer.step(learning_rate, model, gradients, &scale),
        }
        if let Some(ema) = &mut self.ema {
            ema.update(&mut TrainableParameters(&mut self.trainable, model));
        }
        Stepped { loss: loss / samples as f64, grad_norm }
    }

    /// Calls `visit` with every trainable parameter.
    pub fn parameters<M: Network>(&mut self, model: &mut M, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        TrainableParameters(&mut self.trainable, model).parameters("", visit);
    }

    /// Replaces the parameters by the EMA, and returns the parameters on the EMA's device; `None` without an EMA.
    pub(in crate::training) fn use_mean<M: Network>(&mut self, model: &mut M) -> Option<BTreeMap<String, Tensor<1>>> {
        let ema = self.ema.as_ref()?;
        let mut both = TrainableParameters(&mut self.trainable, model);
        let mut raw = BTreeMap::new();
        both.parameters("", &mut |name, parameter| _ = raw.insert(name.to_string(), ema.beside(parameter.flat())));
        assign(&mut both, ema.means());
        Some(raw)
    }

    /// Sets each trainable parameter named in `values`.
    pub(in crate::training) fn assign<M: Network>(&mut self, model: &mut M, values: &BTreeMap<String, Tensor<1>>) {
        assign(&mut TrainableParameters(&mut self.trainable, model), values);
    }
}
