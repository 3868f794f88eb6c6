//! One step of training, as `kiln train` does it between reading a batch and the running mean.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{Case, Denoiser, SEED, Trained};
use crate::{
    error::Result,
    lora::{self, Lora, LoraConfig, Targets},
    models::Segmented,
    training::{
        Mode, OptimizerConfig,
        backward::{self, backward},
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
    pub fn new(case: &Case, mut denoiser: D, activation: Activation) -> Result<Self> {
        let count = denoiser.model().segments().len();
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
        let lora = targets.map(|targets| Lora::init(&config(targets), SEED, denoiser.model_mut())).transpose()?;
        if let Some(lora) = &lora {
            lora.attach(denoiser.model_mut(), 1.0)?;
        }
        let settings = OptimizerConfig::default();
        Ok(Self { denoiser, groups, lora, optimizer: AdamW::new(settings.clone()), settings, step: 0 })
    }

    /// Draws noise and noise levels, forward, backward, clips by the common norm, AdamW. Returns the loss, `[1]`.
    pub fn step(&mut self) -> Tensor<1> {
        let (batch, example) = (self.denoiser.batch() as f64, self.denoiser.example(self.step));
        let mode = if self.lora.is_some() { Mode::Lora } else { Mode::Full };
        let loss = |prediction| example.loss(prediction) * batch;
        let (loss, mut gradients) = backward(self.denoiser.model(), mode, &example.inputs, &self.groups, loss);
        clip(&mut gradients, 1.0 / batch, self.settings.max_grad_norm);
        let (rate, model) = (self.settings.learning_rate, self.denoiser.model_mut());
        match &mut self.lora {
            Some(lora) => {
                lora::detach_all(model);
                self.optimizer.step(rate, lora, gradients);
                lora.attach(model, 1.0).expect("it was attached before");
            }
            None => self.optimizer.step(rate, model, gradients),
        }
        self.step += 1;
        loss
    }
}
