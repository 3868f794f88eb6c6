//! Everything random about a batch.

use burn::tensor::{Device, Tensor};

use super::Objective;
use crate::{
    models::{draw_noise, vae::Moments},
    pipelines::Pipeline,
    rng::{Purpose, Seed},
};

/// Everything random about a batch.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The noise of the VAE's posterior, `[B, C, h, w]`; `None` takes the most likely latents.
    pub posterior: Option<Tensor<4>>,
    /// What is mixed into the latents, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// The noise level of each sample: sigma in (0, 1] for flow matching, else the timestep.
    pub levels: Vec<f64>,
}

impl Draw {
    /// What training draws in optimizer step `step` for the samples from `first` on, of latents `shape`.
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

    /// The latents, raw, that are trained on.
    pub fn latents(&self, moments: &Moments) -> Tensor<4> {
        match &self.posterior {
            Some(noise) => moments.sample(noise.clone()),
            None => moments.mode(),
        }
    }
}

/// Standard normal values, each sample's from a stream of its own.
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
