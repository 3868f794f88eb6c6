//! One step of training, as `kiln train` does it between reading a batch and the running mean.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{Case, Denoiser, SEED, Trained};
use crate::{
    error::Result,
    lora::{Lora, LoraConfig, Targets},
    models::Network,
    training::{
        OptimizerConfig,
        backward::{self, Subject, backward},
        optimizer::{AdamW, clip},
    },
};

/// What is kept of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// What enters each block; the rest is computed again.
    Blockwise,
    /// Everything.
    Kept,
}

/// A denoiser that is being trained.
pub struct Training<D: Denoiser> {
    denoiser: D,
    groups: Vec<Range<usize>>,
    /// `None` where the model itself is trained.
    lora: Option<Lora>,
    optimizer: AdamW,
    settings: OptimizerConfig,
    step: u64,
}

impl<D: Denoiser> Training<D> {
    /// Starts training what the case says of `denoiser`.
    ///
    /// # Errors
    /// The model has none of the layers that the adapter is for.
    pub fn new(case: &Case, denoiser: D, activation: Activation) -> Result<Self> {
        let count = denoiser.model().len();
        let groups = match activation {
            Activation::Blockwise => backward::blockwise(count),
            Activation::Kept => backward::full(count),
        };
        let targets = match case.targets {
            Some(Trained::Full) => None,
            Some(Trained::All) => Some(Targets::All),
            Some(Trained::Attention) | None => Some(Targets::Attention),
        };
        let config = |targets| LoraConfig { targets, rank: case.rank.unwrap_or(16), ..Default::default() };
        let (layers, device) = (denoiser.model().layers(), denoiser.model().lender().device());
        let lora = targets.map(|targets| Lora::init(&config(targets), SEED, &layers, device)).transpose()?;
        let settings = OptimizerConfig::default();
        Ok(Self { denoiser, groups, lora, optimizer: AdamW::new(settings.clone()), settings, step: 0 })
    }

    /// Draws noise and noise levels, forward, backward, clips by the common norm, AdamW. Returns the loss, `[1]`.
    pub fn step(&mut self) -> Tensor<1> {
        let (batch, example) = (self.denoiser.batch() as f64, self.denoiser.example(self.step));
        let adapters = self.lora.as_ref().map(|lora| lora.adapters(1.0));
        let subject = adapters.as_ref().map_or(Subject::Weights, Subject::Adapters);
        let loss = |prediction| example.loss(prediction) * batch;
        let (loss, mut gradients) = backward(self.denoiser.model(), subject, &example.inputs, &self.groups, loss);
        drop(adapters); // what nothing else holds is changed where it lies
        clip(&mut gradients, 1.0 / batch, self.settings.max_grad_norm);
        let rate = self.settings.learning_rate;
        match &mut self.lora {
            Some(lora) => self.optimizer.step(rate, lora, gradients),
            None => self.optimizer.step(rate, self.denoiser.model_mut(), gradients),
        }
        self.step += 1;
        loss
    }
}
