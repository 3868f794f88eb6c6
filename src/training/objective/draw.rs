//! The random draws of a batch.

use burn::tensor::{Device, Tensor};

use super::Objective;
use crate::{
    models::{draw_noise, vae::Moments},
    pipelines::Pipeline,
    rng::{Purpose, Seed},
};

/// The random draws of a batch.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The noise of the VAE's posterior, `[B, C, h, w]`; `None` takes the mode.
    pub posterior: Option<Tensor<4>>,
    /// The noise mixed into the latents, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// The noise level of each sample: sigma in (0, 1] for flow matching, else the timestep.
    pub levels: Vec<f64>,
}

impl Draw {
    /// The draws of training in optimizer step `step` for the samples from `first` on, of latents `shape`.
    pub fn new<P: Pipeline>(
        objective: &impl Objective<P>,
        seed: Seed,
        step: u64,
        first: u64,
        shape: [usize; 4],
        device: &Device,
    ) -> Self {
        let samples = first..first + shape[0] as u64;
        Self {
            posterior: Some(draw_normal(seed, Purpose::Posterior, step, first, shape, device)),
            noise: objective.draw_noise(seed, step, first, shape, device),
            levels: samples.map(|sample| objective.draw_level(seed, step, sample, shape)).collect(),
        }
    }

    /// The raw latents to train on.
    pub fn latents(&self, moments: &Moments) -> Tensor<4> {
        match &self.posterior {
            Some(noise) => moments.sample(noise.clone()),
            None => moments.mode(),
        }
    }
}

/// Standard normal noise, each sample's from its own random stream.
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
