//! The terminal, shared between log lines and displays. Nothing here fails or panics when the terminal is gone, so that a run
//! continues.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard},
};

use indicatif::MultiProgress;

/// The destination of log lines.
pub(in crate::training) enum Logs {
    /// To standard error.
    Stderr,
    /// Above the progress bars.
    Above(MultiProgress),
    /// A buffer, while a dashboard fills the terminal. It is printed when the dashboard closes.
    Held(Vec<u8>),
}

static LOGS: Mutex<Logs> = Mutex::new(Logs::Stderr);

fn logs() -> MutexGuard<'static, Logs> {
    LOGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sends log lines to `place` from now on, and prints buffered ones to standard error.
pub(in crate::training) fn send_logs_to(place: Logs) {
    if let Logs::Held(lines) = std::mem::replace(&mut *logs(), place) {
        to_stderr(&lines);
    }
}

/// Writes to standard error, and ignores errors: there is nowhere else to report them.
fn to_stderr(text: &[u8]) {
    if let Err(error) = io::stderr().write_all(text)
        && is_gone(&error)
    {
        silence();
    }
}

/// Whether a write failed because the reader is gone.
pub fn is_gone(error: &io::Error) -> bool {
    // A closed terminal returns EIO, for which there is no `ErrorKind`.
    error.kind() == io::ErrorKind::BrokenPipe || cfg!(unix) && error.raw_os_error() == Some(5)
}

/// Redirects standard error to nowhere, for libraries that panic when they cannot write there, even while they unwind.
fn silence() {
    #[cfg(unix)]
    if let Ok(nowhere) = std::fs::File::options().write(true).open("/dev/null") {
        _ = rustix::stdio::dup2_stderr(nowhere);
    }
}

/// Prints a line directly to standard error, ignoring bars and dashboards; never fails.
pub fn print_error(line: impl std::fmt::Display) {
    to_stderr(format!("{line}\n").as_bytes());
}

/// Whether standard error shows colours: a terminal, without `NO_COLOR` and `TERM=dumb`.
pub fn has_colours() -> bool {
    // anstream assumes colours on any terminal of a CI service (`CI` is set).
    !is_dumb() && anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// Whether standard error is a terminal that can move its cursor, as bars need.
pub(in crate::training) fn has_cursor() -> bool {
    io::stderr().is_terminal() && !is_dumb()
}

/// Whether `TERM` says that the terminal knows no control sequences.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|name| name == "dumb")
}

/// A writer of log lines to standard error that respects bars and dashboards. Each write should be whole lines. It never fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match &mut *logs() {
            Logs::Above(bars) if !bars.is_hidden() => {
                // Not `suspend`, which panics when the terminal is gone.
                let text = String::from_utf8_lossy(lines);
                _ = bars.println(text.strip_suffix('\n').unwrap_or(&text));
            }
            Logs::Stderr | Logs::Above(_) => to_stderr(lines),
            Logs::Held(held) => held.extend(lines),
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        _ = io::stderr().flush();
        Ok(())
    }
}

/// The terminal's settings before a dashboard changed them.
#[cfg(unix)]
pub(in crate::training) struct Restore(Option<rustix::termios::Termios>);

#[cfg(unix)]
impl Restore {
    /// Saves them.
    pub fn new() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    /// Restores the terminal if a dashboard has it, and prints the buffered log lines.
    pub fn run(&self) {
        let dashboard = matches!(&*logs(), Logs::Held(_));
        if let (Some(settings), true) = (&self.0, dashboard) {
            _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, settings);
            // Mouse reports off, normal screen, cursor on: the inverse of what crossterm sends.
            _ = io::stdout().write_all(b"\x1b[?1006l\x1b[?1015l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1049l\x1b[?25h");
            _ = io::stdout().flush();
        }
        send_logs_to(Logs::Stderr);
    }
}

/// Makes ctrl-c a signal although the terminal is in raw mode. The renderer enters raw mode on its own thread, so this waits for it,
/// at most a second.
#[cfg(unix)]
pub(in crate::training) fn keep_ctrl_c() {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let Ok(mut settings) = tcgetattr(io::stdin()) else { return };
        if !settings.local_modes.contains(LocalModes::ICANON) {
            settings.local_modes.insert(LocalModes::ISIG);
            _ = tcsetattr(io::stdin(), OptionalActions::Now, &settings);
            return;
        }
    }
}

#[cfg(not(unix))]
pub(in crate::training) fn keep_ctrl_c() {}
