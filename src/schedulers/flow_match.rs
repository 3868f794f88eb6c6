//! Flow matching with Euler steps (Lipman et al. 2023; Esser et al. 2024): FLUX.1's schedule.
//!
//! `noisy = (1 - sigma)·latents + sigma·noise`, and the model predicts `velocity = noise - latents`. Both signs are fixed
//! here and nowhere else.

use std::path::Path;

use burn::tensor::Tensor;
use serde::Deserialize;

use super::Scheduler;
use crate::{error::Result, weights::read_json};

/// FlowMatchEulerDiscreteScheduler: `scheduler/scheduler_config.json`, with diffusers' defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlowMatchEuler {
    /// Levels of the training table.
    pub num_train_timesteps: usize,
    /// The static shift, used when shifting is not dynamic.
    pub shift: f64,
    /// Whether the shift grows with the number of image tokens (dev) or not (schnell).
    pub use_dynamic_shifting: bool,
    /// `mu` at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// `mu` at `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Tokens of a 256² picture.
    pub base_image_seq_len: usize,
    /// Tokens of a 1024² picture.
    pub max_image_seq_len: usize,
}

impl Default for FlowMatchEuler {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
        }
    }
}

/// Moves noise levels up: `s·sigma / (1 + (s - 1)·sigma)`. A shift of 1 changes nothing; larger pictures want larger ones.
pub fn shift_sigma(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

impl FlowMatchEuler {
    /// Reads `scheduler_config.json` of a pipeline's `scheduler/` folder.
    ///
    /// # Errors
    /// The file is missing or not of this form.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        read_json(folder.as_ref().join("scheduler_config.json"))
    }

    /// The shift for a picture of `image_tokens` tokens, whatever the scheduler's own setting: `e^mu`, with `mu` linear in
    /// the number of tokens. 1024² gives 3.158 for FLUX.1.
    pub fn resolution_shift(&self, image_tokens: usize) -> f64 {
        self.mu(image_tokens).exp()
    }

    /// `mu` for a picture of `image_tokens` tokens.
    pub fn mu(&self, image_tokens: usize) -> f64 {
        let (x0, x1) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        self.base_shift + (self.max_shift - self.base_shift) * (image_tokens as f64 - x0) / (x1 - x0)
    }

    /// The table that training may draw from, from most to least noise. It is not shifted when shifting is dynamic.
    pub fn training_sigmas(&self) -> Vec<f32> {
        let shift = if self.use_dynamic_shifting { 1.0 } else { self.shift };
        let levels = self.num_train_timesteps;
        (1..=levels).rev().map(|t| shift_sigma(t as f64 / levels as f64, shift) as f32).collect()
    }

    /// The noise levels of a run of `steps` steps, from 1 down, and a final 0.
    pub fn inference_sigmas(&self, steps: usize, image_tokens: usize) -> Vec<f32> {
        let shift = if self.use_dynamic_shifting { self.resolution_shift(image_tokens) } else { self.shift };
        let last = 1.0 / steps as f64;
        let even = |i: usize| if steps == 1 { 1.0 } else { 1.0 + (last - 1.0) * i as f64 / (steps - 1) as f64 };
        (0..steps).map(|i| shift_sigma(even(i), shift) as f32).chain([0.0]).collect()
    }

    /// The part of [`inference_sigmas`](Self::inference_sigmas) that an image-to-image run goes through when it may change
    /// the share `strength` (0 to 1) of a picture.
    pub fn image_to_image_sigmas(&self, steps: usize, image_tokens: usize, strength: f64) -> Vec<f32> {
        let run = (steps as f64 * strength).min(steps as f64);
        let start = (steps as f64 - run).max(0.0) as usize;
        self.inference_sigmas(steps, image_tokens).split_off(start)
    }

    /// The sampler of such a run: all of it with `strength` 1.
    pub fn run(&self, steps: usize, image_tokens: usize, strength: f64) -> FlowMatchRun {
        let sigmas = self.image_to_image_sigmas(steps, image_tokens, strength);
        let timesteps = sigmas[..sigmas.len() - 1].iter().map(|&sigma| f64::from(sigma)).collect();
        FlowMatchRun { sigmas, timesteps }
    }
}

/// Euler steps through given noise levels. What the model is told at each call is the level itself.
#[derive(Clone, Debug)]
pub struct FlowMatchRun {
    sigmas: Vec<f32>,
    timesteps: Vec<f64>,
}

impl Scheduler for FlowMatchRun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        let sigma = Tensor::full([latents.dims()[0]], self.sigmas[index], &latents.device());
        add_noise(latents, noise, sigma)
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        step(latents, prediction, self.sigmas[index], self.sigmas[index + 1])
    }
}

/// `(1 - sigma)·latents + sigma·noise`, with one `sigma` `[B]` for each row of the batch.
pub fn add_noise<const D: usize>(latents: Tensor<D>, noise: Tensor<D>, sigma: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = sigma.dims()[0];
    let sigma = sigma.reshape(shape);
    latents * (sigma.clone().neg() + 1.0) + noise * sigma
}

/// `noise - latents`, what the model learns to predict.
pub fn velocity<const D: usize>(latents: Tensor<D>, noise: Tensor<D>) -> Tensor<D> {
    noise - latents
}

/// One Euler step from noise level `sigma` to `next`.
pub fn step<const D: usize>(sample: Tensor<D>, velocity: Tensor<D>, sigma: f32, next: f32) -> Tensor<D> {
    sample + velocity * f64::from(next - sigma)
}
