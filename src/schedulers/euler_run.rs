//! Runs of Euler's method along the ratio of noise to signal.

use burn::tensor::Tensor;

use super::{
    Level, PredictionType, SchedulerConfig,
    run::Run,
    sigmas::{Curve, FinalSigma, SigmaTable, to_f32},
    spacing::TimestepSpacing,
};
use crate::error::Result;

/// The common part of Euler samplers: noisy latents are `latents + sigma·noise`, and the model sees them scaled to unit variance.
#[derive(Clone, Debug)]
pub(super) struct EulerRun {
    pub(super) timesteps: Vec<f64>,
    /// The ratio before each call of the model, and after the last.
    pub(super) sigmas: Vec<f64>,
    init_noise_sigma: f64,
    prediction_type: PredictionType,
}

impl EulerRun {
    pub(super) fn new(config: &SchedulerConfig, steps: usize, levels: Option<Curve>, last: FinalSigma) -> Result<Self> {
        let table = SigmaTable::new(&config.noise_schedule());
        let spacing = config.get("timestep_spacing", TimestepSpacing::Linspace)?;
        let mut timesteps = to_f32(config.spread(steps, 0, spacing)?);
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
        if let Some(curve) = levels {
            sigmas = curve.levels(sigmas[steps - 1], sigmas[0], steps);
            timesteps = to_f32(sigmas.iter().map(|&sigma| table.timestep(sigma)));
        }
        sigmas.push(table.last(last));
        let sigmas = to_f32(sigmas);
        let most = sigmas[0];
        // A run that does not start at the most noise of training starts from noise over a unit of signal.
        let init_noise_sigma = if spacing == TimestepSpacing::Leading { (most * most + 1.0).sqrt() } else { most };
        Ok(Self { timesteps, sigmas, init_noise_sigma, prediction_type: config.prediction_type })
    }

    /// The same with two calls for each step but the last: at its beginning and at its end, which is the next one's beginning.
    pub(super) fn twice_each(self) -> Self {
        let twice = |values: &[f64]| -> Vec<f64> {
            let (first, others) = values.split_at(1);
            first.iter().copied().chain(others.iter().flat_map(|&value| [value, value])).collect()
        };
        let steps = self.timesteps.len();
        let sigmas = [twice(&self.sigmas[..steps]), self.sigmas[steps..].to_vec()].concat();
        Self { timesteps: twice(&self.timesteps), sigmas, ..self }
    }

    /// The noise that `prediction` means at call `index`: the slope of the latents there.
    pub(super) fn slope(&self, prediction: Tensor<4>, index: usize, latents: Tensor<4>) -> Tensor<4> {
        let level = Level::of_ratio(self.sigmas[index]);
        level.noise(self.prediction_type, prediction, self.scale_model_input(latents, index))
    }

    /// One Euler step from the level before call `index` to the level `to`.
    pub(super) fn step(&self, prediction: Tensor<4>, index: usize, latents: Tensor<4>, to: f64) -> Tensor<4> {
        let slope = self.slope(prediction, index, latents.clone());
        latents + slope * (to - self.sigmas[index])
    }
}

impl Run for EulerRun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, latents: Tensor<4>, index: usize) -> Tensor<4> {
        latents * Level::of_ratio(self.sigmas[index]).signal
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        latents + noise * self.sigmas[index]
    }
}
