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

/// The folder of T5, the only text encoder that is large.
const TEXT_ENCODER: &str = "text_encoder_2";

/// Writes a model folder with smaller weights, which trains LoRA and makes images in less memory
///
/// The matrices of the linear layers in blocks are quantized; embeddings, norms, convolutions, biases, and the first and last
/// layers stay as they are. The folder has the layout of diffusers, and its weights are mapped at start, not converted. What was
/// written is read back and compared before success is reported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a folder in the layout of diffusers, or `org/name`
    #[arg(value_name = "MODEL")]
    model: String,
    /// How weights are stored: four bits a value, or eight
    #[arg(long, value_enum)]
    to: To,
    /// The folder to write
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    output: PathBuf,
    /// Quantize T5, too, the large text encoder of FLUX.1
    #[arg(long)]
    text_encoder: bool,
    /// Let diffusers read the FLUX.1 folder as well: its last layer is then quantized, too (nf4 and int8)
    #[arg(long)]
    for_diffusers: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// Four bits, as bitsandbytes (4.1 bits a value)
    Nf4,
    /// Integers of eight bits, a scale for each row, as bitsandbytes
    Int8,
    /// Floats of eight bits (e4m3), a scale for each square of 128 × 128, as transformers
    Fp8,
}

pub(super) fn run(args: Args) -> Result<()> {
    paths::check_folder(&args.output)?;
    let model = hub::resolve(&args.model)?;
    let family = families::of(&model)?;
    family.check_parts(&model)?;
    let mut parts = vec![family.denoiser()];
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
