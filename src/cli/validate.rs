//! `kiln validate`

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Global, memory::MemoryArgs, print};
use crate::{
    stop,
    training::{self, stop_on_signals},
};

/// Measures the held-out loss of one checkpoint or of all checkpoints of a run, and names the best
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, or one checkpoint `step-NNNNNN`
    #[arg(value_name = "RUN|CHECKPOINT", value_parser = super::path())]
    path: PathBuf,
    /// Also measure the edits of an editing model with the CLIP model in this folder, swept over image guidance
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    clip: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    memory: MemoryArgs,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    stop_on_signals()?;
    let report = training::validate(&args.path, args.clip.as_deref(), args.memory.given(), &global.open()?)?;
    match args.json {
        true => print(serde_json::to_string_pretty(&report).context("the report cannot be written as JSON")?)?,
        false => print(&report)?,
    }
    Ok(stop::check()?)
}
