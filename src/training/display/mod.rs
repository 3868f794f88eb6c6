//! Progress displays: plain lines, bars, a dashboard.

mod terminal;
mod signals;
mod silent;
mod plain;
mod bars;
mod dashboard;

pub use signals::{STOPPED, stop_on_signals};
pub use silent::Silent;
pub use terminal::{LogWriter, has_colours, is_gone, print_error};

use std::{io::IsTerminal, time::Duration};

use burn_train::Interrupter;

use crate::{
    error::{Error, Result},
    training::{
        StepMetrics, ValidationMetrics,
        display::{bars::Bars, dashboard::Dashboard, plain::Plain, terminal::has_cursor},
    },
};

/// A progress display. It writes to standard error or the terminal; standard output is for results.
pub trait Display {
    /// Progress of a phase other than training steps, such as `encoding images`: `done` of `total`. The first call begins it, the one
    /// with `done == total` ends it.
    fn phase(&mut self, name: &str, done: u64, total: u64);

    /// Progress of training: `step` of `max_steps`. Called before the first step and after each.
    fn progress(&mut self, step: u64, max_steps: u64);

    /// The metrics of a logging step.
    fn training(&mut self, metrics: &StepMetrics);

    /// The held-out loss.
    fn validation(&mut self, metrics: &ValidationMetrics);

    /// Whether the user asked to stop: the loop then ends after the current step, with a checkpoint.
    fn stop_requested(&self) -> bool;
}

/// The kinds of display.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Ui {
    /// A dashboard that fills the terminal, with curves.
    Tui,
    /// Progress bars.
    Bar,
    /// Lines of text.
    Plain,
}

impl Ui {
    /// Bars on a terminal; lines elsewhere, on a terminal that cannot move its cursor, and with `-q` (lines go through the log, which
    /// hides them).
    pub fn detect(quiet: bool) -> Self {
        if has_cursor() && !quiet { Self::Bar } else { Self::Plain }
    }
}

/// Opens a display. `interrupter` is how the display, or a signal, asks the loop to stop.
///
/// # Errors
/// The dashboard was requested, but there is no terminal that can show it.
pub fn open_display(ui: Ui, interrupter: Interrupter) -> Result<Box<dyn Display>> {
    Ok(match ui {
        Ui::Plain => Box::new(Plain::new(interrupter)),
        Ui::Bar => Box::new(Bars::new(interrupter)),
        Ui::Tui if std::env::var_os("TERM").is_some_and(|name| name == "dumb") => {
            return Err(Error::setting("ui tui", "this terminal cannot move its cursor (TERM is `dumb`)")
                .hint("use `ui plain` here"));
        }
        Ui::Tui if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() => {
            Box::new(Dashboard::new(interrupter))
        }
        Ui::Tui => {
            return Err(Error::setting("ui tui", "the dashboard needs a terminal on standard input and output")
                .hint("use `ui plain` here, and look at `metrics.jsonl` or `tensorboard/` in the run folder"));
        }
    })
}

/// The metrics of a step as one line, with the remaining time at the speed of the last steps, without validation and checkpoints.
pub(in crate::training) fn describe(metrics: &StepMetrics, max_steps: u64) -> String {
    let StepMetrics { step, loss, learning_rate, grad_norm, seconds_per_step, memory_mib, device_memory_mib } = metrics;
    let on_device = device_memory_mib.map_or(String::new(), |mib| format!(" + {mib:.0} on the GPU"));
    let left = max_steps.saturating_sub(*step) as f64 * seconds_per_step.max(0.0);
    let left = indicatif::HumanDuration(Duration::try_from_secs_f64(left).unwrap_or_default());
    format!(
        "loss {loss:.4}  lr {learning_rate:.2e}  grad_norm {grad_norm:.3}  {seconds_per_step:.2} s/step  \
         {memory_mib:.0} MiB{on_device}  {left:#} left"
    )
}

/// The held-out loss as one line.
pub(in crate::training) fn describe_validation(metrics: &ValidationMetrics) -> String {
    let each: Vec<_> = metrics.validation_loss_at_level.iter().map(|(s, loss)| format!("{s}: {loss:.4}")).collect();
    format!("step {}  validation_loss {:.4}  (at {})", metrics.step, metrics.validation_loss, each.join(", "))
}
