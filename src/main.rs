//! `kiln`: parse, log, run, and say what went wrong.

use std::process::ExitCode;

use kiln::{
    cli::{Cli, report_error, report_panics, run, start_logging},
    memory,
};

fn main() -> ExitCode {
    memory::tune_allocator();
    let (cli, flags) = Cli::read();
    report_panics();
    start_logging(&cli);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report_error(&error, &flags)),
    }
}
