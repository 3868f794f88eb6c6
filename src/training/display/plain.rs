//! Progress as lines.

use std::time::{Duration, Instant};

use burn_train::Interrupter;

use super::{Display, describe, describe_validation};
use crate::training::{StepMetrics, ValidationMetrics};

/// Lines of text, through the log.
pub(super) struct Plain {
    interrupter: Interrupter,
    max_steps: u64,
    phase_shown: Option<(String, Instant)>,
}

impl Plain {
    /// The least time between two lines about one phase.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub(super) fn new(interrupter: Interrupter) -> Self {
        Self { interrupter, max_steps: 0, phase_shown: None }
    }
}

impl Display for Plain {
    fn phase(&mut self, name: &str, done: u64, total: u64) {
        let fresh = matches!(&self.phase_shown, Some((shown, at)) if shown == name && at.elapsed() < Self::PATIENCE);
        if !fresh || done >= total {
            tracing::info!("{name}: {done}/{total}");
            self.phase_shown = (done < total).then(|| (name.to_string(), Instant::now()));
        }
    }

    fn progress(&mut self, _step: u64, max_steps: u64) {
        self.max_steps = max_steps;
    }

    fn training(&mut self, metrics: &StepMetrics) {
        tracing::info!("step {}/{}  {}", metrics.step, self.max_steps, describe(metrics, self.max_steps));
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        tracing::info!("{}", describe_validation(metrics));
    }

    fn stop_requested(&self) -> bool {
        self.interrupter.should_stop()
    }
}
