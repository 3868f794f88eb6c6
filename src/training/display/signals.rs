//! Signals that ask the program to stop.

/// The exit code of a program that was asked to stop and did, with what it had done so far saved.
pub const STOPPED: u8 = 130;

/// Lets ctrl-c, a request to terminate, and the loss of the terminal ask the program to [`stop`](crate::stop) after the item or
/// step at hand. `nohup` keeps its meaning. Ctrl-c or a request to terminate once more ends the program at once, and leaves the
/// terminal as it found it.
///
/// # Errors
/// The system refuses to hand over its signals.
#[cfg(unix)]
pub fn stop_on_signals() -> crate::error::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };

    use crate::training::display::terminal::Restore;
    use crate::{error::Error, stop};

    // A background job of a script has ctrl-c ignored, but a `kill -INT` by name still means it: only the other is respected.
    let mut wanted = vec![SIGINT, SIGTERM];
    wanted.extend((!is_ignored(SIGHUP)).then_some(SIGHUP));
    let mut signals = Signals::new(wanted).map_err(|e| Error::io("signals", e))?;
    let restore = Restore::new();
    let end = move |signal: i32| -> ! {
        restore.run();
        // So that whoever waits for the program sees that a signal ended it, and not that it had stopped by itself.
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
                // A closed terminal may send several signals, and so may a program that passes them on.
                Some(at) if signal != SIGHUP && at.elapsed() > std::time::Duration::from_millis(500) => end(signal),
                Some(_) => {}
            }
        }
    });
    Ok(())
}

/// Elsewhere ctrl-c ends the program; the last checkpoint is whole in any case.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn stop_on_signals() -> crate::error::Result<()> {
    Ok(())
}

/// Whether whoever started the program had it ignore this signal, as `nohup` does.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: without a new action the call only fills in the present one, for which all zeros is a valid value.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
