//! `kiln edit`

use std::path::PathBuf;

use anyhow::Result;

use super::{Global, memory::PlanArgs, sampling::SamplingArgs};
use crate::generation::GenerateRequest;

/// Edits pictures by instruction, with an InstructPix2Pix model, and prints the files written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model in the layout of diffusers: a folder, or `org/name` on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A picture, or a folder of them; a large one is made smaller, and the result as large as it was
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "latents_in", value_parser = super::path())]
    image: Option<PathBuf>,
    /// Latents of pictures instead, as `--latents` writes them
    #[arg(long, value_name = "FILE", conflicts_with = "image", value_parser = super::path())]
    latents_in: Option<PathBuf>,
    /// What to do with them; each picture is edited by every instruction
    #[arg(
        long = "instruction",
        value_name = "TEXT",
        required_unless_present = "prompt_ids",
        conflicts_with = "prompt_ids"
    )]
    prompt: Vec<String>,
    /// Instructions that are tokenized already: safetensors with `clip` [B, 77]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    prompt_ids: Option<PathBuf>,
    /// Start noise; equal seeds give equal pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Results for each picture and instruction
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Pictures edited together, of one size
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Start noise from a file: safetensors with `noise` [B, C, h, w]
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    noise: Option<PathBuf>,
    /// Writes the final latents here and decodes no pictures
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    latents: Option<PathBuf>,
    /// Folder for the results, which have the names of their pictures
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
