//! `kiln train`

use std::{path::PathBuf, process::Command, sync::Arc};

use anyhow::Result;

use super::{ConfigArgs, Global, print};
use crate::{
    serve::starts::Launch,
    stop,
    training::{self, Ui, open_display, stop_on_signals},
};

/// Trains a LoRA or a full model and prints the run folder
///
/// Ctrl-c, SIGTERM or closing the terminal stops the run after the current step with a checkpoint (exit code 130); continue with
/// --resume.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Resume from a run folder (its last checkpoint) or from one checkpoint
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    resume: Option<PathBuf>,
    /// Check everything and print the resolved configuration, the dataset and the memory plan, without training
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Progress display [default: bar on a terminal, else plain]
    #[arg(long, value_enum)]
    ui: Option<Ui>,
}

/// The processes of runs that are started by a server: this program, on the same device.
pub(super) fn process(global: &Global) -> Launch {
    let (device, cache) = (global.device, global.kernel_cache());
    Arc::new(move |config, overrides, checks| {
        // The path of this program, even if it was replaced on disk; always known on supported systems.
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "kiln".into()));
        command.args(["train", "--device", &device.to_string(), "--ui", "plain", "--config"]).arg(config);
        overrides.iter().for_each(|set| _ = command.args(["--set", set]));
        command.args(checks.then_some("--dry-run"));
        command.envs(cache.as_ref().map(|cache| ("KILN_CACHE", cache)));
        command
    })
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let config = args.config.load()?;
    let device = global.open()?;
    stop_on_signals()?;
    let mut display = open_display(args.ui.unwrap_or_else(|| Ui::detect(global.quiet)), stop::interrupter())?;
    if args.dry_run {
        let run = training::dry_run(&config, &device, display.as_mut())?;
        drop(display);
        return print(run);
    }
    let folder = training::train(&config, args.resume.as_deref(), &device, display.as_mut())?;
    drop(display); // gives the terminal back before the result is printed
    print(folder.display())
}
