//! `kiln generate`

use std::path::PathBuf;

use anyhow::Result;

use super::{Global, memory::PlanArgs, sampling::SamplingArgs};
use crate::generation::GenerateRequest;

/// Generates pictures from prompts, with any number of LoRA files, and prints the files written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model in the layout of diffusers: a folder, or `org/name` on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What to show; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_ids", conflicts_with = "prompt_ids")]
    prompt: Vec<String>,
    /// Prompts that are tokenized already: safetensors with `clip` [B, 77] and, for FLUX.1, `t5` [B, L]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    prompt_ids: Option<PathBuf>,
    /// Width in pixels, a multiple of 16 (FLUX.1) or 8 [default: what the model was made for]
    #[arg(long)]
    width: Option<usize>,
    /// Height in pixels, as the width
    #[arg(long)]
    height: Option<usize>,
    /// A picture to start from, or a folder of them; a large one is made smaller, and the result as large as it was
    #[arg(long, value_name = "FILE|DIR", group = "picture", conflicts_with_all = ["width", "height"], value_parser = super::path())]
    image: Option<PathBuf>,
    /// Latents to start from, as `--latents` writes them (those of FLUX.1 need --width and --height)
    #[arg(long, value_name = "FILE", group = "picture", value_parser = super::path())]
    latents_in: Option<PathBuf>,
    /// How much to change it: above 0, and 1 leaves hardly anything
    #[arg(long, default_value_t = 0.8, requires = "picture")]
    strength: f64,
    /// Where to change it: a picture of the same size, white where something new is to be
    #[arg(long, value_name = "FILE", requires = "picture", value_parser = super::path())]
    mask: Option<PathBuf>,
    /// Start noise; equal seeds give equal pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures a prompt
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Pictures made together, of one size [default: as many as are sure to fit into memory]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Start noise from a file: safetensors with `noise` [B, C, h, w]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    noise: Option<PathBuf>,
    /// Writes the final latents here and decodes no pictures
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    latents: Option<PathBuf>,
    /// Folder for the pictures
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
