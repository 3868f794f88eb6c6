//! `kiln export`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::FloatDType;
use clap::ValueEnum;

use super::print;
use crate::{
    lora,
    training::{self, ExportOptions},
};

/// Writes what a run trained for other programs: a LoRA as a file, a fully trained model as a folder
///
/// A LoRA's scale is folded into the weights (alpha equals rank). A model folder has the layout of diffusers. What was written
/// is read back and compared before success is reported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run folder (its last checkpoint), or one of its checkpoints `step-NNNNNN`
    #[arg(value_name = "RUN|CHECKPOINT", value_parser = super::path())]
    path: PathBuf,
    /// The file to write (.safetensors) or, of a full run, the folder
    #[arg(long, value_name = "FILE|DIR", value_parser = super::path())]
    output: PathBuf,
    /// The key naming convention of a LoRA file [default: the one that most programs read: diffusers for FLUX.1, kohya for Stable
    /// Diffusion]
    #[arg(long, value_enum)]
    format: Option<lora::Format>,
    /// Number format of the tensors; bf16 and f16 halve the file and round the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// The trained numbers themselves, where the run also has their running mean (`training.ema_decay`)
    #[arg(long)]
    raw: bool,
    /// Leave out what a LoRA file says about itself: the configuration, the trigger word, hashes. Folders and validation prompts are
    /// never in it
    #[arg(long)]
    no_metadata: bool,
    /// Where the base model of a full run is now, if it is not where it was: a folder, or `org/name`
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

pub(super) fn run(args: Args) -> Result<()> {
    let dtype = match args.dtype {
        Dtype::F32 => FloatDType::F32,
        Dtype::Bf16 => FloatDType::BF16,
        Dtype::F16 => FloatDType::F16,
    };
    let options = ExportOptions {
        format: args.format,
        dtype,
        raw: args.raw,
        metadata: !args.no_metadata,
        model: args.model.as_deref(),
    };
    training::export(&args.path, &args.output, options)?;
    print(args.output.display())
}
