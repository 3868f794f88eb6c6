//! One training step, as in `kiln train` after reading a batch.

use burn::tensor::Tensor;

use super::{Case, SEED, TrainTarget, subject::Subject};
use crate::{
    error::Result,
    lora::{Lora, LoraConfig, Targets},
    pipelines::Pipeline,
    training::{Activations, OptimizerConfig, objective::Objective, optimizer::AdamW, step::Learner},
};

/// A denoiser that is being trained.
pub(super) struct Training<P, O> {
    subject: Subject<P, O>,
    learner: Learner,
    learning_rate: f64,
    step: u64,
}

impl<P: Pipeline, O: Objective<P>> Training<P, O> {
    /// Starts training what the case says of the denoiser.
    ///
    /// # Errors
    /// The model has none of the targeted layers.
    pub fn new(case: &Case, subject: Subject<P, O>, activations: Activations) -> Result<Self> {
        let targets = match case.targets {
            Some(TrainTarget::Full) => None,
            Some(TrainTarget::All) => Some(Targets::All),
            Some(TrainTarget::Attention) | None => Some(Targets::Attention),
        };
        let (layers, device) = (subject.pipeline.layers(), subject.pipeline.device());
        let init = |targets| {
            let config = LoraConfig { targets, rank: case.rank.unwrap_or(16), ..Default::default() };
            Lora::init(&config, subject.denoiser, SEED, &layers, device)
        };
        let lora = targets.map(init).transpose()?;
        let settings = OptimizerConfig::default();
        let learning_rate = settings.learning_rate;
        Ok(Self { subject, learner: Learner::new(lora, AdamW::new(settings), activations), learning_rate, step: 0 })
    }

    /// Draws noise and noise levels, forward, backward, clips by the common norm, AdamW. Returns the loss, `[1]`.
    pub fn step(&mut self) -> Tensor<1> {
        let Subject { pipeline, objective, batch, .. } = &mut self.subject;
        let summed = self.learner.learn(None, &*objective, pipeline, batch.clone(), SEED, self.step);
        self.step += 1;
        self.learner.apply(O::model_mut(pipeline), self.learning_rate, summed).loss
    }
}
