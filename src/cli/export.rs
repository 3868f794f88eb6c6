//! `kiln export`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::FloatDType;
use clap::ValueEnum;

use super::print;
use crate::{lora, training};

/// Writes a trained LoRA as a file that other programs load
///
/// The scale is folded into the weights (alpha equals rank), and the file is read back and compared before success is
/// reported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run folder (its last checkpoint), or one of its checkpoints `step-NNNNNN`
    #[arg(value_name = "RUN|CHECKPOINT")]
    path: PathBuf,
    /// The file to write (.safetensors)
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Whose names the tensors get
    #[arg(long, value_enum, default_value = "diffusers")]
    format: Format,
    /// Number format of the tensors; bf16 and f16 halve the file and round the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Diffusers,
    Kohya,
    #[value(name = "comfyui")]
    ComfyUi,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

pub(super) fn run(args: Args) -> Result<()> {
    let format = match args.format {
        Format::Diffusers => lora::Format::Diffusers,
        Format::Kohya => lora::Format::Kohya,
        Format::ComfyUi => lora::Format::ComfyUi,
    };
    let dtype = match args.dtype {
        Dtype::F32 => FloatDType::F32,
        Dtype::Bf16 => FloatDType::BF16,
        Dtype::F16 => FloatDType::F16,
    };
    training::export(&args.path, &args.output, format, dtype)?;
    print(args.output.display())
}
