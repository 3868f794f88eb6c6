//! `kiln inspect`

use std::path::PathBuf;

use anyhow::Result;

use super::print;
use crate::lora;

/// Describes a safetensors file: model or adapter, format, rank, targets, metadata
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A safetensors or GGUF file, or the folder of an adapter
    #[arg(value_name = "FILE", value_parser = super::path())]
    file: PathBuf,
}

pub(super) fn run(args: Args) -> Result<()> {
    print(lora::inspect(&args.file)?)
}
