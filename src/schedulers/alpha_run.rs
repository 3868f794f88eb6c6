//! Runs along the timesteps of a noise schedule.

use burn::tensor::Tensor;

use super::{Level, NoiseSchedule, PredictionType, run::Run};

/// The common part of samplers that step from one training timestep to another.
#[derive(Clone, Debug)]
pub(super) struct AlphaRun {
    pub(super) schedule: NoiseSchedule,
    pub(super) timesteps: Vec<f64>,
    pub(super) prediction_type: PredictionType,
}

impl AlphaRun {
    /// The timestep of call `index`.
    pub(super) fn timestep(&self, index: usize) -> i64 {
        self.timesteps[index] as i64
    }

    /// The level before call `index`.
    pub(super) fn level(&self, index: usize) -> Level {
        self.schedule.level(self.timestep(index))
    }
}

impl Run for AlphaRun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        self.level(index).mix(latents, noise)
    }
}
