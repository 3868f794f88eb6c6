//! The task of a run: a model, and an objective that turns batches into examples for it.

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::objective::Example;
use crate::{
    data::Batch,
    error::Result,
    models::{Network, draw_noise, vae::Moments},
    nn::Adapters,
    rng::{Purpose, Seed},
};

/// What the model of a task is called with.
pub(super) type Inputs<T> = <<T as Task>::Model as Network>::Inputs;

/// A model and what it learns. The loop, checkpoints, metrics and validation are the same for all tasks.
pub(super) trait Task: Sized {
    /// The denoiser that is trained.
    type Model: Network;

    /// What a noise level is called: `sigma` or `timestep`.
    const LEVEL: &'static str;

    /// The denoiser.
    fn model(&self) -> &Self::Model;

    /// The same, to be changed.
    fn model_mut(&mut self) -> &mut Self::Model;

    /// Where its tensors are.
    fn device(&self) -> &Device;

    /// The noise level of a sample of latents `shape` `[B, C, h, w]`: a function of seed, step and sample number alone.
    fn draw_level(&self, seed: Seed, step: u64, sample: u64, shape: [usize; 4]) -> f64;

    /// The standard normal noise of the samples from `first` on, `[B, C, h, w]`.
    fn draw_noise(&self, seed: Seed, step: u64, first: u64, shape: [usize; 4]) -> Tensor<4> {
        draw_normal(seed, Purpose::Noise, step, first, shape, self.device())
    }

    /// The batch at the given noise, ready for the model.
    fn example(&self, batch: Batch, draw: Draw) -> Example<Inputs<Self>>;

    /// The noise levels at which the held-out loss is measured.
    fn levels(&self) -> &[f64];

    /// What the model makes with `adapters` on, as one image for people to look at, if the configuration asks for any. A model
    /// that is not `trained` yet is as it was loaded.
    ///
    /// # Errors
    /// An image is not finite, or the cache is damaged.
    fn grid(&mut self, adapters: &[Adapters], trained: bool) -> Result<Option<RgbImage>>;
}

/// Everything random about a batch.
pub(super) struct Draw {
    /// The noise of the VAE's posterior, `[B, C, h, w]`; `None` takes the most likely latents.
    pub posterior: Option<Tensor<4>>,
    /// What is mixed into the latents, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// The noise level of each sample: sigma in (0, 1] for flow matching, else the timestep.
    pub levels: Vec<f64>,
}

impl Draw {
    /// What training draws for the samples from `first` on, of latents `shape`.
    pub fn new(task: &impl Task, seed: Seed, step: u64, first: u64, shape: [usize; 4]) -> Self {
        let samples = first..first + shape[0] as u64;
        Self {
            posterior: Some(draw_normal(seed, Purpose::Posterior, step, first, shape, task.device())),
            noise: task.draw_noise(seed, step, first, shape),
            levels: samples.map(|sample| task.draw_level(seed, step, sample, shape)).collect(),
        }
    }

    /// The latents, raw, that are trained on.
    pub fn latents(&self, moments: &Moments) -> Tensor<4> {
        match &self.posterior {
            Some(noise) => moments.sample(noise.clone()),
            None => moments.mode(),
        }
    }
}

/// Normal numbers, each sample's from a stream of its own.
pub(super) fn draw_normal(
    seed: Seed,
    purpose: Purpose,
    step: u64,
    first: u64,
    shape: [usize; 4],
    device: &Device,
) -> Tensor<4> {
    draw_noise((first..).map(|sample| seed.draw(purpose, step, sample)), shape, device)
}
