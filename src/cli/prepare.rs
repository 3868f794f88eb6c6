//! `kiln prepare`

use anyhow::Result;

use super::{ConfigArgs, Global, print};
use crate::{
    stop,
    training::{self, Ui, open_display, stop_on_signals},
};

/// Encodes images and captions into the cache, so that training starts at once
///
/// `train` does this by itself for whatever is missing. Ctrl-c stops after the current image with exit code 130, and the next
/// call resumes there.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Progress display [default: bar on a terminal, else plain]
    #[arg(long, value_enum)]
    ui: Option<Ui>,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let config = args.config.load()?;
    let device = global.open()?;
    stop_on_signals()?;
    let mut display = open_display(args.ui.unwrap_or_else(|| Ui::detect(global.quiet)), stop::interrupter())?;
    let cache = training::prepare(&config, &device, display.as_mut())?;
    drop(display);
    print(cache.display())
}
