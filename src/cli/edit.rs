//! `kiln edit`

use std::path::PathBuf;

use anyhow::Result;

use super::{Global, memory::PlanArgs, sampling::SamplingArgs};
use crate::generation::GenerateRequest;

/// Edits images by instruction with an InstructPix2Pix model and prints the files written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model: a folder in diffusers' layout, `org/name` on the Hugging Face hub, or a single-file checkpoint as `FILE@MODEL`
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Image to edit, or a folder of images; large ones are processed at the model's resolution and scaled back
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "latents_in", value_parser = super::path())]
    image: Option<PathBuf>,
    /// Latents to edit instead of images, as written by `--latents`
    #[arg(long, value_name = "FILE", conflicts_with = "image", value_parser = super::path())]
    latents_in: Option<PathBuf>,
    /// Instruction; repeat to apply several to each image
    #[arg(
        long = "instruction",
        value_name = "TEXT",
        required_unless_present = "prompt_ids",
        conflicts_with = "prompt_ids"
    )]
    prompt: Vec<String>,
    /// Pre-tokenized instructions: safetensors with `clip` [B, 77]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    prompt_ids: Option<PathBuf>,
    /// Seed of the noise; the same seed gives the same image
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Results per image and instruction
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Images per batch, all of one size
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Initial noise from a file: safetensors with `noise` [B, C, h, w]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    noise: Option<PathBuf>,
    /// Write the final latents to this file instead of decoding images
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    latents: Option<PathBuf>,
    /// Folder for the results, named like their inputs
    #[arg(long, value_name = "DIR", required_unless_present = "latents", conflicts_with = "latents", value_parser = super::path())]
    output: Option<PathBuf>,
    #[command(flatten)]
    plan: PlanArgs,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let (sampling, loras) = args.sampling.into();
    let request = GenerateRequest {
        model: args.model,
        loras,
        sampling,
        edit: true,
        prompts: args.prompt,
        pre_tokenized_ids: args.prompt_ids,
        input_is_latents: args.latents_in.is_some(),
        image: args.image.or(args.latents_in),
        seed: args.seed,
        count: args.count,
        batch_size: Some(args.batch_size),
        noise: args.noise,
        return_latents: args.latents.is_some(),
        output: args.output.or(args.latents).unwrap_or_default(),
        ..GenerateRequest::default()
    };
    args.plan.make(request, global)
}
