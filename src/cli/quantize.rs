//! `kiln quantize`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use super::print;
use crate::{
    error::Error,
    families, hub, paths,
    weights::{QuantizeOptions, QuantizedTo, quantize_folder},
};

/// The folder of T5, the only large text encoder.
const TEXT_ENCODER: &str = "text_encoder_2";

/// Writes a copy of a model with quantized weights, for LoRA training and sampling in less memory
///
/// Quantizes the weight matrices of linear layers inside blocks; embeddings, norms, convolutions, biases, and the first and last
/// layers keep their dtype. The folder has diffusers' layout; its weights are memory-mapped at start, not converted. The output
/// is read back and compared before success is reported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model: a folder in diffusers' layout, or `org/name` on the Hugging Face hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Storage format of the weights
    #[arg(long, value_enum)]
    to: To,
    /// Folder to write
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    output: PathBuf,
    /// Also quantize T5, the large text encoder of FLUX.1
    #[arg(long)]
    text_encoder: bool,
    /// Make a FLUX.1 folder that diffusers can load: also quantizes its last layer (nf4 and int8)
    #[arg(long)]
    for_diffusers: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// 4 bits, bitsandbytes' NF4 with double quantization (4.1 bits per value)
    Nf4,
    /// 8-bit integers with one scale per row, bitsandbytes' format
    Int8,
    /// 8-bit floats (e4m3) with one scale per 128 × 128 block, transformers' format
    Fp8,
}

pub(super) fn run(args: Args) -> Result<()> {
    paths::check_folder(&args.output)?;
    let model = hub::resolve(&args.model)?;
    let family = families::of(&model)?;
    family.check_parts(&model)?;
    let mut parts = vec![family.denoiser().folder()];
    if args.text_encoder {
        if !model.join(TEXT_ENCODER).is_dir() {
            let problem = format!("{} has no T5", family.name());
            return Err(Error::setting("text_encoder", problem).hint("leave it out").into());
        }
        parts.push(TEXT_ENCODER);
    }
    let to = match args.to {
        To::Nf4 => QuantizedTo::Nf4,
        To::Int8 => QuantizedTo::Int8,
        To::Fp8 => QuantizedTo::Fp8,
    };
    let options = QuantizeOptions { to, for_diffusers: args.for_diffusers };
    let report = quantize_folder(&model, &parts, &args.output, options)?;
    tracing::info!("{report}"); // not inside: what a quiet log does not show is not evaluated
    print(args.output.display())
}
