//! Progress bars.

use burn_train::Interrupter;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::training::{
    Display, StepMetrics, ValidationMetrics,
    display::{
        describe, describe_validation,
        terminal::{Logs, has_cursor, send_logs_to},
    },
};

/// A bar for training and, above it, one for the phases between steps. Log lines go above both.
pub(in crate::training) struct Bars {
    interrupter: Interrupter,
    all: MultiProgress,
    training: Option<ProgressBar>,
    phase: Option<(String, ProgressBar)>,
}

impl Bars {
    /// Bars on standard error, if it can show them.
    pub fn new(interrupter: Interrupter) -> Self {
        let target = if has_cursor() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        send_logs_to(Logs::Above(all.clone()));
        Self { interrupter, all, training: None, phase: None }
    }

    fn bar(&self, template: &str, total: u64) -> ProgressBar {
        let style = ProgressStyle::with_template(template).expect("the templates below are constants that parse");
        ProgressBar::new(total).with_style(style.progress_chars("━╸ "))
    }
}

impl Display for Bars {
    fn phase(&mut self, name: &str, done: u64, total: u64) {
        if self.phase.as_ref().is_none_or(|(shown, _)| shown != name) {
            let bar = self.bar("{prefix:<24} {pos}/{len} {bar:30} eta {eta}", total);
            let bar = self.all.insert(0, bar).with_prefix(name.to_string());
            if let Some((_, old)) = self.phase.replace((name.to_string(), bar)) {
                old.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &self.phase {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
                tracing::info!("{name}: {total} in {:.1} s", bar.elapsed().as_secs_f64());
                self.phase = None;
            }
        }
    }

    fn progress(&mut self, step: u64, max_steps: u64) {
        if self.training.is_none() {
            let bar = self.bar("step {pos}/{len} {bar:20} {msg}", max_steps);
            self.training = Some(self.all.add(bar));
        }
        if let Some(bar) = &self.training {
            bar.set_position(step);
        }
    }

    fn training(&mut self, metrics: &StepMetrics) {
        if let Some(bar) = &self.training {
            bar.set_message(describe(metrics, bar.length().unwrap_or(metrics.step)));
        }
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        tracing::info!("{}", describe_validation(metrics));
    }

    fn stop_requested(&self) -> bool {
        self.interrupter.should_stop()
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let last = self.phase.take().map(|(_, bar)| bar).into_iter().chain(self.training.take());
        last.for_each(|bar| bar.abandon());
        send_logs_to(Logs::Stderr);
    }
}
