//! `kiln train`

use std::path::PathBuf;

use anyhow::Result;

use super::{ConfigArgs, Global, print};
use crate::{
    stop,
    training::{self, Ui, open_display, stop_on_signals},
};

/// Trains a LoRA, or a whole model, and prints the run folder
///
/// Ctrl-c, SIGTERM or a closed terminal ends the run after the current step, with a checkpoint from which --resume goes on; the
/// exit code is then 130.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Goes on from a run folder (its last checkpoint) or from one of its checkpoints
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    resume: Option<PathBuf>,
    /// Checks everything, prints the resolved configuration, the data and the memory that it takes, and trains nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// How progress is shown [default: bar on a terminal, else plain]
    #[arg(long, value_enum)]
    ui: Option<Ui>,
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
