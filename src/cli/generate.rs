//! `kiln generate`

use std::path::PathBuf;

use anyhow::Result;

use super::{Global, memory::PlanArgs, sampling::SamplingArgs};
use crate::generation::GenerateRequest;

/// Generates images from prompts, with any number of LoRAs, and prints the files written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model: a folder in diffusers' layout, `org/name` on the Hugging Face hub, or a single-file checkpoint as `FILE@MODEL`
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Prompt; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_ids", conflicts_with = "prompt_ids")]
    prompt: Vec<String>,
    /// Pre-tokenized prompts: safetensors with `clip` [B, 77] and, for FLUX.1, `t5` [B, L]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    prompt_ids: Option<PathBuf>,
    /// Width in pixels, a multiple of 16 (FLUX.1) or 8 [default: the model's native resolution]
    #[arg(long)]
    width: Option<usize>,
    /// Height in pixels, like the width
    #[arg(long)]
    height: Option<usize>,
    /// Initial image for image-to-image, or a folder; large ones are processed at the model's resolution and scaled back
    #[arg(long, value_name = "FILE|DIR", group = "picture", conflicts_with_all = ["width", "height"], value_parser = super::path())]
    image: Option<PathBuf>,
    /// Initial latents, as written by `--latents` (FLUX.1 also needs --width and --height)
    #[arg(long, value_name = "FILE", group = "picture", value_parser = super::path())]
    latents_in: Option<PathBuf>,
    /// Denoising strength: above 0; 1 keeps almost nothing of the initial image
    #[arg(long, default_value_t = 0.8, requires = "picture")]
    strength: f64,
    /// Inpainting mask: an image of the same size, white where it is to be repainted
    #[arg(long, value_name = "FILE", requires = "picture", value_parser = super::path())]
    mask: Option<PathBuf>,
    /// Seed of the noise; the same seed gives the same image
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images per prompt
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Images per batch, all of one size [default: as many as fit in memory]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Initial noise from a file: safetensors with `noise` [B, C, h, w]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    noise: Option<PathBuf>,
    /// Write the final latents to this file instead of decoding images
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    latents: Option<PathBuf>,
    /// Folder for the images
    #[arg(long, value_name = "DIR", required_unless_present = "latents", conflicts_with = "latents", value_parser = super::path())]
    output: Option<PathBuf>,
    #[command(flatten)]
    plan: PlanArgs,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let Args { model, sampling, prompt: prompts, prompt_ids: pre_tokenized_ids, image, strength, mask, .. } = args;
    let Args { width, height, seed, count, batch_size, noise, latents_in, latents, output, plan, .. } = args;
    let (sampling, loras) = sampling.into();
    let (input_is_latents, return_latents) = (latents_in.is_some(), latents.is_some());
    let (image, output) = (image.or(latents_in), output.or(latents).unwrap_or_default());
    #[rustfmt::skip] // one field a line would hide that nothing happens here
    let request = GenerateRequest {
        model, loras, sampling, edit: false, prompts, pre_tokenized_ids, image, input_is_latents, strength, mask, width, height, seed,
        count, batch_size, noise, return_latents, output,
        ..GenerateRequest::default()
    };
    plan.make(request, global)
}
