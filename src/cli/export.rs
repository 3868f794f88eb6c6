//! `kiln export`

use std::path::PathBuf;

use anyhow::Result;
use clap::{ValueEnum, builder::PossibleValue};

use super::print;
use crate::{
    lora,
    training::{self, ExportOptions},
    weights::FileDtype,
};

/// Exports a run for other programs: a LoRA as one file, a fully trained model as a folder
///
/// The scale of a LoRA is folded into its weights (alpha equals rank). A model folder has diffusers' layout. The output is read
/// back and compared before success is reported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder (uses its last checkpoint), or one checkpoint `step-NNNNNN`
    #[arg(value_name = "RUN|CHECKPOINT", value_parser = super::path())]
    path: PathBuf,
    /// File to write (.safetensors), or the folder for a fully trained model
    #[arg(long, value_name = "FILE|DIR", value_parser = super::path())]
    output: PathBuf,
    /// Key naming convention of a LoRA file [default: diffusers for FLUX.1, kohya for Stable Diffusion: what most programs read]
    #[arg(long, value_enum)]
    format: Option<lora::Format>,
    /// Dtype of the tensors; bf16 and f16 halve the file and round the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: FileDtype,
    /// Export the raw weights instead of their EMA (`training.ema_decay`)
    #[arg(long)]
    raw: bool,
    /// Leave out the metadata of a LoRA file: configuration, trigger word, hashes. Paths and validation prompts are never written
    #[arg(long)]
    no_metadata: bool,
    /// Base model of a full run, if it has moved: a folder, or `org/name`
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
}

impl ValueEnum for FileDtype {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::F32, Self::Bf16, Self::F16]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }))
    }
}

pub(super) fn run(args: Args) -> Result<()> {
    let options = ExportOptions {
        format: args.format,
        dtype: args.dtype,
        raw: args.raw,
        metadata: !args.no_metadata,
        model: args.model.as_deref(),
    };
    training::export(&args.path, &args.output, options)?;
    print(args.output.display())
}
