//! Heun's method along the ratio of noise to signal: algorithm 1 of Karras et al. 2022 without churn. Each step but the last calls the
//! model twice.

use burn::tensor::Tensor;
use serde_json::json;

use super::{
    Level, PredictionType, Scheduler, SchedulerConfig,
    sigmas::{Curve, EulerRun, FinalSigma},
};
use crate::error::Result;

/// HeunDiscreteScheduler.
#[derive(Clone, Debug)]
pub struct Heun {
    /// Its levels, one a step.
    run: EulerRun,
    /// What the model is told at each call.
    timesteps: Vec<f64>,
    prediction_type: PredictionType,
    /// After the first call of a step: the slope there, and the latents that it started from.
    begun: Option<(Tensor<4>, Tensor<4>)>,
}

impl Heun {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let no = [json!(false)];
        config.accept(&[("clip_sample", &no), ("sigma_min", &[]), ("sigma_max", &[])])?;
        let run = EulerRun::new(config, steps, Curve::of(config)?, FinalSigma::Zero)?;
        let (first, others) = run.timesteps.split_first().map_or((0.0, &[][..]), |(first, others)| (*first, others));
        let timesteps = std::iter::once(first).chain(others.iter().flat_map(|&t| [t, t])).collect();
        Ok(Self { run, timesteps, prediction_type: config.prediction_type, begun: None })
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> Vec<f64> {
        (0..self.timesteps.len()).map(|index| self.sigma(index)).chain(self.run.sigmas.last().copied()).collect()
    }

    /// Of the latents that the model sees at call `index`.
    fn sigma(&self, index: usize) -> f64 {
        self.run.sigmas[index.div_ceil(2)]
    }
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma
    }

    fn scale_model_input(&self, latents: Tensor<4>, index: usize) -> Tensor<4> {
        latents * Level::of_ratio(self.sigma(index)).signal
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        latents + noise * self.sigma(index)
    }

    /// A step of Euler's at even calls; at odd ones the same from the same start, with the mean of the slopes at both ends.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let slope = Level::of_ratio(self.sigma(index)).noise(
            self.prediction_type,
            prediction,
            self.scale_model_input(latents.clone(), index),
        );
        let step = index / 2;
        let width = self.run.sigmas[step + 1] - self.run.sigmas[step];
        match self.begun.take() {
            None => {
                self.begun = Some((slope.clone(), latents.clone()));
                latents + slope * width
            }
            Some((before, start)) => start + (before + slope) * (width / 2.0),
        }
    }
}
