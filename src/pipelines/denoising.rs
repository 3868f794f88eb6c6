//! Step-by-step denoising of a request, one call of the network at a time.

use burn::tensor::{FloatDType, Tensor};

use super::request::{Condition, Request, Start};
use crate::{
    models::draw_noise,
    rng::{Purpose, Seed},
    schedulers::Scheduler,
};

/// The images of one request, which are denoised together. [`Pipeline::advance`](super::Pipeline::advance) advances those of many
/// requests, each at its own step, so that one may join others, or be dropped, between two steps.
#[derive(Debug)]
pub struct Denoising {
    sampler: Box<dyn Scheduler>,
    condition: Condition,
    /// The weights of the predictions for an image, which add up to 1.
    weights: Vec<f64>,
    seeds: Vec<u64>,
    clean: Option<Start>,
    /// The initial noise, `[B, C, h, w]`.
    noise: Tensor<4>,
    latents: Tensor<4>,
    /// The number of the sampler's first call, and of the next one.
    first: usize,
    next: usize,
    /// The number of times the sampler added noise.
    draws: u64,
}

impl Denoising {
    /// Starts a request with call `first` of `sampler`.
    pub(super) fn new(request: &Request, sampler: Box<dyn Scheduler>, first: usize) -> Self {
        let (condition, weights) = request.conditions();
        let (noise, clean) = (request.noise.clone().cast(FloatDType::F32), request.start.clone());
        let latents = match &clean {
            Some(clean) if !clean.is_free() => sampler.add_noise(clean.latents.clone(), noise.clone(), first),
            _ => noise.clone() * sampler.init_noise_sigma(),
        };
        let seeds = request.seeds.clone();
        Self { sampler, condition, weights, seeds, clean, noise, latents, first, next: first, draws: 0 }
    }

    /// The number of calls of the network so far.
    pub fn step(&self) -> usize {
        self.next - self.first
    }

    /// The number of calls in total.
    pub fn of(&self) -> usize {
        self.sampler.timesteps().len() - self.first
    }

    /// Whether no steps are left.
    pub fn is_done(&self) -> bool {
        self.step() == self.of()
    }

    /// The number of images.
    pub fn images(&self) -> usize {
        self.seeds.len()
    }

    /// The number of rows in a call of the network: with guidance, more than one per image.
    pub fn rows(&self) -> usize {
        self.seeds.len() * self.weights.len()
    }

    /// Width and height in latent pixels.
    pub fn size(&self) -> (usize, usize) {
        let [_, _, height, width] = self.latents.dims();
        (width, height)
    }

    /// The current scaled latents, `[B, C, h, w]`.
    pub fn latents(&self) -> &Tensor<4> {
        &self.latents
    }

    /// The inputs of the next call of the network: latents `[R, C, h, w]`, a timestep for each, and the conditions.
    pub(super) fn inputs(&self) -> (Tensor<4>, Vec<f64>, &Condition) {
        let latents = self.sampler.scale_model_input(self.latents.clone(), self.next).repeat_dim(0, self.weights.len());
        (latents, vec![self.sampler.timesteps()[self.next]; self.rows()], &self.condition)
    }

    /// Advances by one step with the `prediction` for all rows; noise that the sampler adds is drawn from each image's seed.
    pub(super) fn take(&mut self, prediction: Tensor<4>) {
        let (mut draws, seeds, shape, device) =
            (self.draws, self.seeds.clone(), self.noise.dims(), self.noise.device());
        let mut noise = || {
            draws += 1;
            draw_noise(seeds.iter().map(|&seed| Seed(seed).draw(Purpose::Sampler, draws, 0)), shape, &device)
        };
        self.take_with(prediction, &mut noise);
        self.draws = draws;
    }

    /// The same with the caller's noise, in the shape of the latents.
    pub(super) fn take_with(&mut self, prediction: Tensor<4>, noise: &mut dyn FnMut() -> Tensor<4>) {
        let prediction = weighted_sum(prediction, &self.weights);
        let latents = self.sampler.step(prediction, self.next, self.latents.clone(), noise);
        self.next += 1;
        self.latents = match self.clean.as_ref().and_then(|clean| Some((clean, clean.mask.as_ref()?))) {
            None => latents,
            Some((clean, mask)) => {
                // Pixels outside the mask follow the initial image, at the noise level of the latents.
                let kept = match self.is_done() {
                    true => clean.latents.clone(),
                    false => self.sampler.add_noise(clean.latents.clone(), self.noise.clone(), self.next),
                };
                kept * (mask.clone().neg() + 1.0) + latents * mask.clone()
            }
        };
    }
}

/// The weighted sum over the conditions of `[K·B, C, h, w]`: `[B, C, h, w]`.
fn weighted_sum(predictions: Tensor<4>, weights: &[f64]) -> Tensor<4> {
    if let [1.0] = weights {
        return predictions;
    }
    let parts = predictions.chunk(weights.len(), 0).into_iter().zip(weights);
    parts.map(|(part, weight)| part * *weight).reduce(|sum, part| sum + part).expect("there is at least one condition")
}
