//! The spacing of a run's timesteps: table 2 of Lin et al. 2023.

use serde::Deserialize;

/// The spacing of a run's timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimestepSpacing {
    /// From the last to the first, both included.
    Linspace,
    /// Multiples of a whole number, from 0 on.
    Leading,
    /// Down from the last, which is included.
    Trailing,
}

impl TimestepSpacing {
    /// `count` of `levels` timesteps, falling; those of [`Linspace`](Self::Linspace) may be fractions.
    pub(super) fn timesteps(self, levels: usize, count: usize) -> Vec<f64> {
        let last = (levels - 1) as f64;
        match self {
            Self::Linspace if count == 1 => vec![0.0],
            Self::Linspace => {
                let step = last / (count - 1) as f64;
                (0..count).rev().map(|i| if i == count - 1 { last } else { i as f64 * step }).collect()
            }
            Self::Leading => (0..count).rev().map(|i| (i * (levels / count)) as f64).collect(),
            Self::Trailing => {
                let levels = levels as f64;
                let step = (levels - levels / count as f64) - levels; // rounded as NumPy's `arange` rounds it
                (0..count).map(|i| (levels + i as f64 * step).round_ties_even() - 1.0).collect()
            }
        }
    }
}
