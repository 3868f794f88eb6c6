//! Runs along ratios of noise to signal, with latents of unit size.

use burn::tensor::Tensor;

use super::{Level, PredictionType, run::Run};

/// The common part of samplers like DPM-Solver.
#[derive(Clone, Debug)]
pub(super) struct RatioRun {
    pub(super) timesteps: Vec<f64>,
    /// The ratio before each call of the model, and after the last.
    pub(super) sigmas: Vec<f64>,
    pub(super) prediction_type: PredictionType,
}

impl RatioRun {
    /// The level before call `index`, or after the last.
    pub(super) fn level(&self, index: usize) -> Level {
        Level::of_ratio(self.sigmas[index])
    }

    /// The clean latents that `prediction` means at call `index`.
    pub(super) fn clean(&self, prediction: Tensor<4>, index: usize, latents: Tensor<4>) -> Tensor<4> {
        self.level(index).latents(self.prediction_type, prediction, latents)
    }
}

impl Run for RatioRun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        self.level(index).mix(latents, noise)
    }
}
