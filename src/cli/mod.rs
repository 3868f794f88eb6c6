//! The command line: one file per command, each with its `Args` and a `run`. Results go to standard output, everything else to
//! standard error.

mod flags;
mod report;
mod sampling;
mod memory;
mod worker;
mod batch;
mod bench;
mod config;
mod doctor;
mod edit;
mod export;
mod generate;
mod inspect;
mod prepare;
mod quantize;
mod selftest;
mod train;
mod serve;
mod validate;

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::{PathBufValueParser, TypedValueParser},
};

use crate::{
    cuda::Paths,
    device::DeviceChoice,
    error::{Error, Subject},
    paths,
    training::{TrainConfig, is_gone},
};
pub use flags::Flags;
pub use report::{report_error, report_panics, start_logging};

/// The version and the devices of this build: `kiln --version`.
const LONG_VERSION: &str = match cfg!(feature = "cuda") {
    true => concat!(env!("CARGO_PKG_VERSION"), "\ndevices: cpu, cuda (feature cuda)"),
    false => concat!(env!("CARGO_PKG_VERSION"), "\ndevices: cpu"),
};

/// The exit codes.
const EXIT_CODES: &str = "Exit codes: 0 success; 1 error; 2 wrong command line; 130 stopped on request (ctrl-c, SIGTERM, SIGHUP, or `q` in \
                          the dashboard) with all work saved; 101 internal error.";

/// Fine-tunes, samples and serves image models: FLUX.1 with LoRA, Stable Diffusion with InstructPix2Pix.
#[derive(Debug, Parser)]
#[command(version, long_version = LONG_VERSION, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
struct Global {
    /// Device: `cpu`, `cuda` or `cuda:N`
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE", help_heading = "General")]
    device: DeviceChoice,
    /// Folder that caches compiled and tuned GPU kernels between runs [default: ~/.cache/kiln]
    #[arg(long, global = true, env = "KILN_CACHE", hide_env = true, value_name = "DIR", help_heading = "General", value_parser = path())]
    kernel_cache: Option<PathBuf>,
    /// Refused: the old name of `--kernel-cache`
    #[arg(long, global = true, hide = true, value_parser = renamed)]
    cache: Option<PathBuf>,
    /// Operations to run on NVIDIA's libraries where they are installed: `products` (cuBLASLt), with `epilogues` what follows them in
    /// the same launch, `attention` and `convolutions` (cuDNN); `deterministic-attention` gives the same bits in every run; an
    /// empty list means none [default: products,epilogues,attention,convolutions]
    #[arg(
        long,
        global = true,
        env = "KILN_CUDA_PATHS",
        hide_env = true,
        value_name = "LIST",
        help_heading = "General"
    )]
    cuda_paths: Option<Paths>,
    /// Log more on standard error (-vv: also from libraries)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "General")]
    verbose: u8,
    /// Log only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "General")]
    quiet: bool,
}

impl Cli {
    /// Parses the command line; also returns the flags of its command. Ends the program if it is invalid, or asks for help.
    pub fn read() -> (Self, Flags) {
        let matches = Self::command().get_matches();
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        (cli, matches.subcommand_name().map(Flags::of).unwrap_or_default())
    }
}

impl Global {
    /// The folder given for compiled kernels.
    fn kernel_cache(&self) -> Option<PathBuf> {
        self.kernel_cache.clone().filter(|folder| !folder.as_os_str().is_empty())
    }

    fn open(&self) -> crate::error::Result<Device> {
        self.device.open(self.kernel_cache(), self.cuda_paths.unwrap_or_default())
    }
}

/// Refuses `--cache`, and says what to write instead.
fn renamed(folder: &str) -> std::result::Result<PathBuf, String> {
    Err(format!(
        "compiled kernels are kept with `--kernel-cache {folder}` now; encoded images are kept in `data.cache` of the \
         configuration"
    ))
}

#[derive(Debug, Subcommand)]
enum Command {
    Prepare(prepare::Args),
    Train(train::Args),
    Validate(validate::Args),
    Export(export::Args),
    Generate(generate::Args),
    Edit(edit::Args),
    Batch(batch::Args),
    Serve(serve::Args),
    Worker(worker::Args),
    Quantize(quantize::Args),
    Inspect(inspect::Args),
    Config(config::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Selftest(selftest::Args),
}

/// Runs the command.
///
/// # Errors
/// Any error, with its causes.
pub fn run(cli: Cli) -> Result<()> {
    let global = &cli.global;
    let done = match cli.command {
        Command::Prepare(args) => prepare::run(args, global),
        Command::Train(args) => train::run(args, global),
        Command::Validate(args) => validate::run(args, global),
        Command::Export(args) => export::run(args),
        Command::Generate(args) => generate::run(args, global),
        Command::Edit(args) => edit::run(args, global),
        Command::Batch(args) => batch::run(args, global),
        Command::Serve(args) => serve::run(args, global),
        Command::Worker(args) => worker::run(args, global),
        Command::Quantize(args) => quantize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Config(args) => config::run(args),
        Command::Doctor(args) => doctor::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Selftest(args) => selftest::run(args, global),
    };
    let error = done.as_ref().err().and_then(|error| error.downcast_ref::<Error>());
    if let Some(Subject::Stopped { done }) = error.map(|error| &error.subject) {
        done.iter().try_for_each(|path| print(path.display()))?;
    }
    done
}

/// The configuration file and its overrides.
#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", value_parser = path())]
    config: PathBuf,
    /// Override one value of the configuration, such as `lora.rank=8`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<TrainConfig> {
        TrainConfig::load(&self.config, &self.set).context("the configuration cannot be used")
    }
}

/// A path with `~` resolved: see [`paths::meant`].
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| paths::meant(&path))
}

/// Writes a result to standard output. A closed reader (`kiln … | head`) or terminal is not an error.
fn print(text: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if !is_gone(&e) => Err(e).context("standard output cannot be written"),
        _ => Ok(()),
    }
}

/// The same, line by line, for a command that only prints: it ends quietly with its reader, as `cat` does.
fn print_live(text: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if is_gone(&e) => std::process::exit(141),
        written => written.context("standard output cannot be written"),
    }
}
