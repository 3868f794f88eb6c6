//! Noise levels as the ratio of noise to signal, which samplers of Euler's kind and DPM-Solver take their steps in.

use serde::Deserialize;

use super::{NoiseSchedule, SchedulerConfig, curve};
use crate::error::Result;

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinalSigma {
    /// Without noise.
    Zero,
    /// At the least noise of training.
    SigmaMin,
}

/// `sigma / signal` of every training timestep, rising.
pub(super) struct SigmaTable(Vec<f32>);

impl SigmaTable {
    pub(super) fn new(schedule: &NoiseSchedule) -> Self {
        let ratio = |&alpha: &f32| {
            let alpha = if alpha == 0.0 { 2f32.powi(-24) } else { alpha }; // a zero terminal level: finite, as in diffusers
            ((1.0 - alpha) / alpha).sqrt()
        };
        Self(schedule.alphas_cumprod.iter().map(ratio).collect())
    }

    /// The least and the most noise of training.
    pub(super) fn ends(&self) -> (f64, f64) {
        (f64::from(self.0[0]), f64::from(self.0[self.0.len() - 1]))
    }

    /// At a timestep, which may be a fraction.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        let below = (timestep as usize).min(self.0.len() - 2);
        let (low, high) = (f64::from(self.0[below]), f64::from(self.0[below + 1]));
        (high - low) * (timestep - below as f64) + low
    }

    /// The timestep of a noise level, interpolated between logarithms.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let (log, table) = (sigma.max(1e-10).ln(), |i: usize| f64::from(self.0[i].ln()));
        let above = self.0.partition_point(|known| f64::from(known.ln()) <= log);
        let below = above.saturating_sub(1).min(self.0.len() - 2);
        let share = ((table(below) - log) / (table(below) - table(below + 1))).clamp(0.0, 1.0);
        (1.0 - share) * below as f64 + share * (below + 1) as f64
    }

    /// The level after the last step.
    pub(super) fn last(&self, kind: FinalSigma) -> f64 {
        if kind == FinalSigma::Zero { 0.0 } else { self.ends().0 }
    }
}

/// The spacing of a run's levels between their ends, instead of that of its timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    Karras,
    Exponential,
    Beta,
}

impl Curve {
    /// The one that a file asks for, if any.
    ///
    /// # Errors
    /// It asks for several, or a setting is of another type.
    pub(super) fn of(config: &SchedulerConfig) -> Result<Option<Self>> {
        let mut found = None;
        for (key, curve) in [
            ("use_karras_sigmas", Self::Karras),
            ("use_exponential_sigmas", Self::Exponential),
            ("use_beta_sigmas", Self::Beta),
        ] {
            if config.get(key, false)? {
                if found.is_some() {
                    return Err(config.refuse(key));
                }
                found = Some(curve);
            }
        }
        Ok(found)
    }

    /// `steps` levels from `most` to `least`.
    pub(super) fn levels(self, least: f64, most: f64, steps: usize) -> Vec<f64> {
        match self {
            Self::Karras => curve::karras(least, most, steps),
            Self::Exponential => curve::exponential(least, most, steps),
            Self::Beta => curve::beta(least, most, steps),
        }
    }
}

/// Rounds to f32, which diffusers keeps its tables in.
pub(super) fn to_f32(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(|value| f64::from(value as f32)).collect()
}
