//! A request on its way from noise to latents, one call of the network at a time.

use burn::tensor::{FloatDType, Tensor};

use super::request::{Condition, Request, Start};
use crate::{
    models::draw_noise,
    rng::{Purpose, Seed},
    schedulers::Scheduler,
};

/// The images of one request, which are denoised together. [`Pipeline::advance`](super::Pipeline::advance) takes those of many
/// requests a step on, each at a step of its own: so one may join others, or be dropped, between two steps.
#[derive(Debug)]
pub struct Denoising {
    sampler: Box<dyn Scheduler>,
    condition: Condition,
    /// Of the predictions for an image, which add up to 1.
    weights: Vec<f64>,
    seeds: Vec<u64>,
    clean: Option<Start>,
    /// The noise that all began with, `[B, C, h, w]`.
    noise: Tensor<4>,
    latents: Tensor<4>,
    /// The number of the sampler's first call, and of the next one.
    first: usize,
    next: usize,
    /// How often the sampler added noise.
    draws: u64,
}

impl Denoising {
    /// `sampler` starts with its call `first`.
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

    /// How many calls of the network there were.
    pub fn step(&self) -> usize {
        self.next - self.first
    }

    /// How many there will be.
    pub fn of(&self) -> usize {
        self.sampler.timesteps().len() - self.first
    }

    /// Whether there are no more steps to do.
    pub fn is_done(&self) -> bool {
        self.step() == self.of()
    }

    /// How many images there are.
    pub fn images(&self) -> usize {
        self.seeds.len()
    }

    /// How many rows they have in a call of the network: with guidance, more than one each.
    pub fn rows(&self) -> usize {
        self.seeds.len() * self.weights.len()
    }

    /// Width and height, in latent pixels.
    pub fn size(&self) -> (usize, usize) {
        let [_, _, height, width] = self.latents.dims();
        (width, height)
    }

    /// Scaled latents as they are now, `[B, C, h, w]`.
    pub fn latents(&self) -> &Tensor<4> {
        &self.latents
    }

    /// What the network is called with next: latents `[R, C, h, w]`, a timestep for each, and the rest.
    pub(super) fn inputs(&self) -> (Tensor<4>, Vec<f64>, &Condition) {
        let latents = self.sampler.scale_model_input(self.latents.clone(), self.next).repeat_dim(0, self.weights.len());
        (latents, vec![self.sampler.timesteps()[self.next]; self.rows()], &self.condition)
    }

    /// Goes a step on from the `prediction` for all rows, with noise drawn from each image's seed where the sampler adds some.
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

    /// The same with noise of the caller's, of the latents' shape.
    pub(super) fn take_with(&mut self, prediction: Tensor<4>, noise: &mut dyn FnMut() -> Tensor<4>) {
        let prediction = weighted_sum(prediction, &self.weights);
        let latents = self.sampler.step(prediction, self.next, self.latents.clone(), noise);
        self.next += 1;
        self.latents = match self.clean.as_ref().and_then(|clean| Some((clean, clean.mask.as_ref()?))) {
            None => latents,
            Some((clean, mask)) => {
                // What is not masked follows the image, as noisy as the latents are now.
                let kept = match self.is_done() {
                    true => clean.latents.clone(),
                    false => self.sampler.add_noise(clean.latents.clone(), self.noise.clone(), self.next),
                };
                kept * (mask.clone().neg() + 1.0) + latents * mask.clone()
            }
        };
    }
}

/// The rows of each condition `[K·B, C, h, w]`, weighted and added up: `[B, C, h, w]`.
fn weighted_sum(predictions: Tensor<4>, weights: &[f64]) -> Tensor<4> {
    if let [1.0] = weights {
        return predictions;
    }
    let parts = predictions.chunk(weights.len(), 0).into_iter().zip(weights);
    parts.map(|(part, weight)| part * *weight).reduce(|sum, part| sum + part).expect("there is at least one condition")
}
