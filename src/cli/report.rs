//! Log lines, errors and panics for the user.

use std::backtrace::Backtrace;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{Cli, Flags};
use crate::{
    error::{Error, Subject},
    memory::is_attempted,
    panics::is_guarded,
    training::{LogWriter, STOPPED, has_colours, print_error},
};

/// Sends log lines to standard error: kiln's from `info` on, fewer with `-q`, more with `-v`. `RUST_LOG` takes precedence.
pub fn start_logging(cli: &Cli) {
    let filter = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "warn",
        (_, 0) => "warn,kiln=info",
        (_, 1) => "warn,kiln=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let chatty = filter.max_level_hint() > Some(LevelFilter::INFO);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_ansi(has_colours())
        .log_internal_errors(false)
        .with_target(chatty)
        .without_time()
        .init();
}

/// Prints an error as `error: …`, its causes, and the next move as `hint: …` lines, with fields spelled as the `flags` of the command;
/// a stop on request is not printed as an error. Returns the exit code.
pub fn report_error(error: &anyhow::Error, flags: &Flags) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(stopped) if stopped.is_stop() => {
            print_error(flags.spell_all(&stopped.to_string()));
            STOPPED
        }
        _ => {
            print_error(describe(error, flags));
            1
        }
    }
}

fn describe(error: &anyhow::Error, flags: &Flags) -> String {
    let (mut said, mut hints) = (String::new(), String::new());
    for cause in error.chain() {
        let text = match cause.downcast_ref::<Error>() {
            Some(error) => {
                hints.extend(error.hint.iter().map(|hint| format!("\nhint: {}", flags.spell_all(hint))));
                match &error.subject {
                    Subject::Setting(field) => format!("`{}`: {}", flags.spell(field), error.problem),
                    _ => error.message(),
                }
            }
            None => cause.to_string(),
        };
        // An error may repeat its cause; it is printed once.
        if said.contains(&text) {
            continue;
        }
        said += if said.is_empty() { "error: " } else { "\n  because: " };
        said += &text;
    }
    said + &hints
}

/// The thread that draws the dashboard. It panics when its terminal is gone, which is not a bug, and the run continues.
const RENDERER: &str = "train-renderer";

/// Turns a panic, which is always a bug, into one clear message. The exit code is then 101.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if is_guarded() {
            return; // of a library, on a broken file: it becomes an error
        }
        let place = panic.location().map_or(String::new(), |place| format!(" at {}:{}", place.file(), place.line()));
        let message = panic.payload_as_str().unwrap_or("no message");
        if is_attempted(message) {
            return; // on whichever thread: it becomes an error
        }
        if std::thread::current().name() == Some(RENDERER) {
            print_error(format_args!("the dashboard ended: {message}"));
            return;
        }
        print_error(format_args!(
            "error: internal error{place}: {message}\nhint: please report this with the command, the \
             configuration and what `RUST_BACKTRACE=1` adds"
        ));
        let backtrace = Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            print_error(backtrace);
        }
    }));
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_follow_hints_come_last_and_nothing_is_said_twice() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = Err::<(), _>(Error::io("a.toml", missing)).context("the configuration cannot be used").unwrap_err();
        let told = describe(&error, &Flags::default());
        assert_eq!(told, "error: the configuration cannot be used\n  because: a.toml: entity not found");

        let error = Error::setting("lora.rank", "is 0").hint("use 16");
        assert_eq!(describe(&error.into(), &Flags::default()), "error: `lora.rank`: is 0\nhint: use 16");

        let error = Error::setting("scheduler", "is not supported by FLUX.1").hint("use `guidance`, not `lora.rank`");
        let told = "error: `--scheduler`: is not supported by FLUX.1\nhint: use `--guidance`, not `lora.rank`";
        assert_eq!(describe(&error.into(), &Flags::of("generate")), told);
    }
}
