//! One noise level, and the meaning of a prediction there.

use burn::tensor::Tensor;
use serde::Deserialize;

/// The prediction type of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `signal·noise - sigma·latents`: Salimans & Ho 2022.
    VPrediction,
}

/// `noisy = signal·latents + sigma·noise`, with `signal² + sigma² = 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The share of the latents.
    pub signal: f64,
    /// The share of the noise.
    pub sigma: f64,
}

impl Level {
    /// The level of one entry of [`alphas_cumprod`](super::NoiseSchedule::alphas_cumprod), `signal²`.
    pub fn of_alpha(alpha: f64) -> Self {
        Self { signal: alpha.sqrt(), sigma: (1.0 - alpha).sqrt() }
    }

    /// The level at which noisy latents are `latents + ratio·noise` but for their size.
    pub fn of_ratio(ratio: f64) -> Self {
        let signal = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { signal, sigma: ratio * signal }
    }

    /// `ln(signal / sigma)`, in which DPM-Solver takes its steps. Infinite without noise.
    pub fn log_ratio(self) -> f64 {
        self.signal.ln() - self.sigma.ln()
    }

    /// Noisy latents.
    pub fn mix(self, latents: Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
        latents * self.signal + noise * self.sigma
    }

    /// The clean latents that `prediction` means for `noisy` ones of this level.
    pub fn latents(self, kind: PredictionType, prediction: Tensor<4>, noisy: Tensor<4>) -> Tensor<4> {
        match kind {
            PredictionType::Epsilon => (noisy - prediction * self.sigma) / self.signal,
            PredictionType::VPrediction => noisy * self.signal - prediction * self.sigma,
        }
    }

    /// The noise that `prediction` means for `noisy` latents of this level.
    pub fn noise(self, kind: PredictionType, prediction: Tensor<4>, noisy: Tensor<4>) -> Tensor<4> {
        match kind {
            PredictionType::Epsilon => prediction,
            PredictionType::VPrediction => prediction * self.signal + noisy * self.sigma,
        }
    }
}
