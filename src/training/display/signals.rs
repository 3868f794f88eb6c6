//! Stopping on signals.

/// The exit code of a program that stopped on request, with its work saved.
pub const STOPPED: u8 = 130;

/// Makes ctrl-c, SIGTERM and SIGHUP ask the program to [`stop`](crate::stop) after the current item or step. `nohup` keeps its meaning.
/// A second ctrl-c or SIGTERM ends the program at once, and restores the terminal.
///
/// # Errors
/// The signal handlers cannot be installed.
#[cfg(unix)]
pub fn stop_on_signals() -> crate::error::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };

    use crate::training::display::terminal::Restore;
    use crate::{error::Error, stop};

    // A background job of a script ignores ctrl-c, but an explicit `kill -INT` should still work: only SIGHUP stays ignored.
    let mut wanted = vec![SIGINT, SIGTERM];
    wanted.extend((!is_ignored(SIGHUP)).then_some(SIGHUP));
    let mut signals = Signals::new(wanted).map_err(|e| Error::io("signals", e))?;
    let restore = Restore::new();
    let end = move |signal: i32| -> ! {
        restore.run();
        // So that a waiting process sees that a signal ended the program.
        _ = signal_hook::low_level::emulate_default_handler(signal);
        std::process::exit(128 + signal)
    };
    std::thread::spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            match first {
                None if stop::is_expendable() => end(signal),
                None => {
                    first = Some(std::time::Instant::now());
                    stop::interrupter().stop(Some("asked to by a signal"));
                    tracing::warn!(
                        "stopping after the current step or image; press ctrl-c again to quit at once without saving"
                    );
                }
                // A closed terminal may send several signals, and so may a parent that forwards them.
                Some(at) if signal != SIGHUP && at.elapsed() > std::time::Duration::from_millis(500) => end(signal),
                Some(_) => {}
            }
        }
    });
    Ok(())
}

/// On other systems ctrl-c ends the program; the last checkpoint is intact in any case.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn stop_on_signals() -> crate::error::Result<()> {
    Ok(())
}

/// Whether this signal was ignored when the program was started, as by `nohup`.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: without a new action the call only fills in the current one, for which all zeros is a valid value.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
