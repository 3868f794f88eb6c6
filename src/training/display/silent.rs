//! No display.

use super::Display;
use crate::training::{StepMetrics, ValidationMetrics};

/// A display that shows nothing.
pub struct Silent;

impl Display for Silent {
    fn phase(&mut self, _: &str, _: u64, _: u64) {}
    fn progress(&mut self, _: u64, _: u64) {}
    fn training(&mut self, _: &StepMetrics) {}
    fn validation(&mut self, _: &ValidationMetrics) {}
    fn stop_requested(&self) -> bool {
        false
    }
}
