//! The learning rate as a function of the step: diffusers' schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Stays.
    #[default]
    Constant,
    /// Falls in a straight line to zero at the last step.
    Linear,
    /// Falls along half a cosine to zero.
    Cosine,
    /// `cycles` half cosines, each starting at the full rate again.
    CosineWithRestarts,
    /// Falls along `(1 - progress)^power` to 1e-7.
    Polynomial,
}

/// The `[schedule]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape: `constant`, `linear`, `cosine`, `cosine_with_restarts` or `polynomial`. A constant rate is a good start;
    /// use `cosine` when the number of steps is settled and the last steps should be calm.
    pub name: ScheduleName,
    /// Optimizer steps in which the rate rises in a straight line from zero. Raise it if the first steps are unstable.
    pub warmup_steps: u64,
    /// Of `cosine_with_restarts`: how many times it falls.
    pub cycles: u64,
    /// Of `polynomial`: the exponent; 1 is a straight line.
    pub power: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { name: ScheduleName::Constant, warmup_steps: 0, cycles: 1, power: 1.0 }
    }
}

/// Where `polynomial` ends.
const POLYNOMIAL_END: f64 = 1e-7;

impl ScheduleConfig {
    /// The learning rate of optimizer step `step` (from 0) of `max_steps`, when the full rate is `base`.
    pub fn learning_rate(&self, base: f64, step: u64, max_steps: u64) -> f64 {
        if step < self.warmup_steps {
            return base * step as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps) as f64 / max_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = done.min(1.0);
        match self.name {
            ScheduleName::Constant => base,
            ScheduleName::Linear => base * (1.0 - done),
            ScheduleName::Cosine => base * 0.5 * (1.0 + (PI * done).cos()),
            ScheduleName::CosineWithRestarts if done >= 1.0 => 0.0,
            ScheduleName::CosineWithRestarts => base * 0.5 * (1.0 + (PI * (self.cycles as f64 * done).fract()).cos()),
            ScheduleName::Polynomial => (base - POLYNOMIAL_END) * (1.0 - done).powf(self.power) + POLYNOMIAL_END,
        }
    }
}
