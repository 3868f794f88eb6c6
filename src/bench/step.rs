//! One step of training, as `kiln train` takes it after reading a batch.

use burn::tensor::Tensor;

use super::{Case, Denoiser, Model, SEED, TrainTarget};
use crate::{
    error::Result,
    lora::{self, Lora, LoraConfig, Targets},
    models::Network,
    training::{Activations, OptimizerConfig, optimizer::AdamW, step::Learner},
};

/// A denoiser that is being trained.
pub struct Training<D: Denoiser> {
    denoiser: D,
    learner: Learner,
    learning_rate: f64,
    step: u64,
}

impl<D: Denoiser> Training<D> {
    /// Starts training what the case says of `denoiser`.
    ///
    /// # Errors
    /// The model has none of the layers that the adapter is for.
    pub fn new(case: &Case, denoiser: D, activations: Activations) -> Result<Self> {
        let targets = match case.targets {
            Some(TrainTarget::Full) => None,
            Some(TrainTarget::All) => Some(Targets::All),
            Some(TrainTarget::Attention) | None => Some(Targets::Attention),
        };
        let config = |targets| LoraConfig { targets, rank: case.rank.unwrap_or(16), ..Default::default() };
        let (layers, device) = (denoiser.model().layers(), denoiser.model().lender().device());
        let kind = match case.model {
            Some(Model::Unet) => lora::Denoiser::Unet,
            _ => lora::Denoiser::Transformer,
        };
        let lora = targets.map(|targets| Lora::init(&config(targets), kind, SEED, &layers, device)).transpose()?;
        let settings = OptimizerConfig::default();
        let learning_rate = settings.learning_rate;
        Ok(Self { denoiser, learner: Learner::new(lora, AdamW::new(settings), activations), learning_rate, step: 0 })
    }

    /// Draws noise and noise levels, forward, backward, clips by the common norm, AdamW. Returns the loss, `[1]`.
    pub fn step(&mut self) -> Tensor<1> {
        let example = self.denoiser.example(self.step);
        let summed = self.learner.gradients(None, self.denoiser.model(), &example, self.step);
        drop(example);
        self.step += 1;
        self.learner.apply(self.denoiser.model_mut(), self.learning_rate, summed).loss
    }
}
