//! The learning rate as a function of the step: diffusers' schedules.

use std::f64::consts::PI;

use crate::training::{ScheduleConfig, ScheduleName};

/// The final learning rate of `polynomial`.
const POLYNOMIAL_END: f64 = 1e-7;

impl ScheduleConfig {
    /// The learning rate of optimizer step `step` (from 0) of `max_steps`, with the full rate `base`.
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
