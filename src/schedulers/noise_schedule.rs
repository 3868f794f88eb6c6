//! The noise schedule: how much noise each training timestep has (Ho et al. 2020).

use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;

use super::Level;

/// The growth of `beta`, the noise that a timestep adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Its root grows evenly: Stable Diffusion.
    ScaledLinear,
    /// As far as a squared cosine needs (Nichol & Dhariwal 2021), up to 0.999.
    SquaredcosCapV2,
}

impl BetaSchedule {
    /// One `beta` for each of `levels` timesteps, at least two.
    pub(super) fn betas(self, start: f64, end: f64, levels: usize) -> Vec<f32> {
        match self {
            Self::Linear => even(start, end, levels),
            Self::ScaledLinear => even(start.sqrt(), end.sqrt(), levels).into_iter().map(|root| root * root).collect(),
            Self::SquaredcosCapV2 => {
                let cosine = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let at = |i: usize| cosine(i as f64 / levels as f64);
                (0..levels).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
            }
        }
    }
}

/// `count` values from `start` to `end`, each half counted from its own end, as PyTorch does.
fn even(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    let value = |i| if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 };
    (0..count).map(value).collect()
}

/// The noise schedule of training.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// The share of the signal's variance that is left at each timestep: the product of all `1 - beta` so far.
    pub alphas_cumprod: Vec<f32>,
}

impl NoiseSchedule {
    /// From the noise that each timestep adds. `zero_terminal` stretches the schedule so that nothing but noise is left at
    /// its end: algorithm 1 of Lin et al. 2023.
    pub(super) fn new(betas: &[f32], zero_terminal: bool) -> Self {
        // The product is taken in f64 and kept in f32, as PyTorch does on the CPU.
        let cumulative = |alphas: &mut dyn Iterator<Item = f32>| {
            let product = alphas.scan(1.0, |product, alpha| {
                *product *= f64::from(alpha);
                Some(*product as f32)
            });
            product.collect::<Vec<f32>>()
        };
        let plain = cumulative(&mut betas.iter().map(|beta| 1.0 - beta));
        if !zero_terminal {
            return Self { alphas_cumprod: plain };
        }
        let (first, last) = (plain[0].sqrt(), plain[plain.len() - 1].sqrt());
        let stretched = plain.iter().map(|alpha| ((alpha.sqrt() - last) * (first / (first - last))).powi(2));
        let stretched: Vec<f32> = stretched.collect();
        // Back to betas and forth once more: the rounding of diffusers.
        let before = [1.0].into_iter().chain(stretched.iter().copied());
        let betas = stretched.iter().zip(before).map(|(alpha, before)| 1.0 - alpha / before);
        Self { alphas_cumprod: cumulative(&mut betas.map(|beta| 1.0 - beta)) }
    }

    /// The level of a timestep, which must be one of the schedule's.
    pub fn level(&self, timestep: i64) -> Level {
        Level::of_alpha(self.alpha(timestep))
    }

    /// The level of a timestep, or of `last` where it lies beyond the end of the run.
    pub(super) fn level_or(&self, timestep: i64, last: f64) -> Level {
        Level::of_alpha(if timestep < 0 { last } else { self.alpha(timestep) })
    }

    /// One entry of [`alphas_cumprod`](Self::alphas_cumprod).
    pub(super) fn alpha(&self, timestep: i64) -> f64 {
        f64::from(self.alphas_cumprod[timestep as usize])
    }

    /// The signal-to-noise ratio of a timestep, `signal² / sigma²`.
    pub fn snr(&self, timestep: i64) -> f64 {
        let alpha = self.alpha(timestep);
        alpha / (1.0 - alpha)
    }

    /// Latents `[B, C, h, w]` as noisy as their `timesteps`, one for each row, say.
    pub fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[i64]) -> Tensor<4> {
        let (signal, sigma) = self.shares(&latents, timesteps);
        latents * signal + noise * sigma
    }

    /// The target of v-prediction: `signal·noise - sigma·latents`, `[B, C, h, w]`.
    pub fn velocity(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[i64]) -> Tensor<4> {
        let (signal, sigma) = self.shares(&latents, timesteps);
        noise * signal - latents * sigma
    }

    /// `signal` and `sigma`, `[B, 1, 1, 1]`, of the device and type of `like`.
    fn shares(&self, like: &Tensor<4>, timesteps: &[i64]) -> (Tensor<4>, Tensor<4>) {
        let column = |share: fn(Level) -> f64| {
            let values: Vec<f32> = timesteps.iter().map(|&t| share(self.level(t)) as f32).collect();
            let data = TensorData::new(values, [timesteps.len(), 1, 1, 1]);
            Tensor::from_data(data, (&like.device(), like.dtype()))
        };
        (column(|level| level.signal), column(|level| level.sigma))
    }
}
