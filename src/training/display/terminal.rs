//! The terminal, shared between log lines and displays. Nothing here fails or panics because nobody reads any more: a run goes on
//! when its terminal is gone.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard},
};

use indicatif::MultiProgress;

/// Where log lines go.
pub(in crate::training) enum Logs {
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
pub(in crate::training) fn send_logs_to(place: Logs) {
    if let Logs::Held(lines) = std::mem::replace(&mut *logs(), place) {
        to_stderr(&lines);
    }
}

/// Writes to standard error. That it is closed, full or hung up is no error: there is nobody else to tell.
fn to_stderr(text: &[u8]) {
    if let Err(error) = io::stderr().write_all(text)
        && is_gone(&error)
    {
        silence();
    }
}

/// Whether nobody is there any more to read what could not be written.
pub fn is_gone(error: &io::Error) -> bool {
    // A terminal that was closed answers with EIO, for which there is no kind.
    error.kind() == io::ErrorKind::BrokenPipe || cfg!(unix) && error.raw_os_error() == Some(5)
}

/// Sends standard error nowhere from now on, for libraries that panic when they cannot write there, even while they clean up
/// after a panic.
fn silence() {
    #[cfg(unix)]
    if let Ok(nowhere) = std::fs::File::options().write(true).open("/dev/null") {
        _ = rustix::stdio::dup2_stderr(nowhere);
    }
}

/// Prints a line to standard error, which knows nothing of bars and dashboards; never fails.
pub fn print_error(line: impl std::fmt::Display) {
    to_stderr(format!("{line}\n").as_bytes());
}

/// Whether standard error shows colours: a terminal, and neither `NO_COLOR` nor `TERM=dumb` speaks against it.
pub fn has_colours() -> bool {
    // anstream takes any terminal of a CI service (`CI` is set) for one with colours.
    !is_dumb() && anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// Whether standard error can show what moves: a terminal that can put its cursor elsewhere.
pub(in crate::training) fn has_cursor() -> bool {
    io::stderr().is_terminal() && !is_dumb()
}

/// Whether the terminal says that it knows no control sequences.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|name| name == "dumb")
}

/// Standard error for log lines, which knows when bars or a dashboard own the terminal. Each write should be whole
/// lines. It never fails.
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
    /// Remembers them.
    pub fn new() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    /// Gives the terminal back as it was, if a dashboard has it, and prints the log lines that it held.
    pub fn run(&self) {
        let dashboard = matches!(&*logs(), Logs::Held(_));
        if let (Some(settings), true) = (&self.0, dashboard) {
            _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, settings);
            // Mouse reports off, back to the normal screen, cursor on (the inverse of what crossterm sends).
            _ = io::stdout().write_all(b"\x1b[?1006l\x1b[?1015l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1049l\x1b[?25h");
            _ = io::stdout().flush();
        }
        send_logs_to(Logs::Stderr);
    }
}

/// Lets ctrl-c be a signal although the terminal is in raw mode, once it is. The renderer enters raw mode on a thread of
/// its own, so this waits for it, at most a second.
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
