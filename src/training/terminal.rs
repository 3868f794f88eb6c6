//! The terminal, shared between log lines, displays and ctrl-c.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard},
};

use burn_train::Interrupter;
use indicatif::MultiProgress;

use crate::error::{Error, Result};

/// Where log lines go.
pub(super) enum Logs {
    /// To standard error.
    Stderr,
    /// Above the progress bars.
    Above(MultiProgress),
    /// Nowhere yet: a dashboard fills the terminal. They are printed when it closes.
    Held(Vec<u8>),
}

static LOGS: Mutex<Logs> = Mutex::new(Logs::Stderr);

fn logs() -> MutexGuard<'static, Logs> {
    LOGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sends log lines to `place` from now on, and those that were held to standard error.
pub(super) fn send_logs_to(place: Logs) {
    if let Logs::Held(lines) = std::mem::replace(&mut *logs(), place) {
        let _ = io::stderr().write_all(&lines); // nobody is left to tell
    }
}

/// Standard error for log lines, which knows when bars or a dashboard own the terminal. Each write should be whole
/// lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match &mut *logs() {
            Logs::Stderr => io::stderr().write_all(lines)?,
            Logs::Above(bars) => bars.suspend(|| io::stderr().write_all(lines))?,
            Logs::Held(held) => held.extend(lines),
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Lets ctrl-c (and a request to terminate) ask `interrupter` to stop, so that a run ends with a checkpoint. The second
/// time the program ends at once, and leaves the terminal as it found it.
///
/// # Errors
/// The system refuses to hand over its signals.
#[cfg(unix)]
pub fn stop_on_signals(interrupter: &Interrupter) -> Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::io("signals", e))?;
    let interrupter = interrupter.clone();
    let restore = Restore::new();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if interrupter.should_stop() {
                restore.run();
                std::process::exit(128 + signal);
            }
            interrupter.stop(Some("asked to by a signal"));
            tracing::warn!("stopping after this step, with a checkpoint; once more to stop at once, without");
        }
    });
    Ok(())
}

/// Elsewhere ctrl-c ends the program; the last checkpoint is whole in any case.
#[cfg(not(unix))]
pub fn stop_on_signals(_interrupter: &Interrupter) -> Result<()> {
    Ok(())
}

/// The terminal's settings before a dashboard changed them.
#[cfg(unix)]
struct Restore(Option<rustix::termios::Termios>);

#[cfg(unix)]
impl Restore {
    fn new() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    fn run(&self) {
        let dashboard = matches!(&*logs(), Logs::Held(_));
        if let (Some(settings), true) = (&self.0, dashboard) {
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, settings);
            // Mouse reports off, back to the normal screen, cursor on (the inverse of what crossterm sends).
            let _ =
                io::stdout().write_all(b"\x1b[?1006l\x1b[?1015l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1049l\x1b[?25h");
            let _ = io::stdout().flush();
        }
        send_logs_to(Logs::Stderr);
    }
}

/// Lets ctrl-c be a signal although the terminal is in raw mode, once it is. The renderer enters raw mode on a thread of
/// its own, so this waits for it, at most a second.
#[cfg(unix)]
pub(super) fn keep_ctrl_c() {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let Ok(mut settings) = tcgetattr(io::stdin()) else { return };
        if !settings.local_modes.contains(LocalModes::ICANON) {
            settings.local_modes.insert(LocalModes::ISIG);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &settings);
            return;
        }
    }
}

#[cfg(not(unix))]
pub(super) fn keep_ctrl_c() {}
