//! `kiln generate`

use std::path::PathBuf;

use anyhow::Result;

use super::{Global, print};
use crate::pipelines::{self, GenerateRequest};

/// Generates pictures from prompts, with any number of LoRA files, and prints the files written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model in the layout of diffusers: a folder, or `org/name` on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// A LoRA file of diffusers, PEFT, kohya or ComfyUI, with a strength (1 if left out); may be repeated
    #[arg(long, value_name = "FILE[@SCALE]", value_parser = lora)]
    lora: Vec<(PathBuf, f64)>,
    /// What to show; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_ids", conflicts_with = "prompt_ids")]
    prompt: Vec<String>,
    /// Prompts that are tokenized already: safetensors with `clip` [B, 77] and `t5` [B, L]
    #[arg(long, value_name = "FILE")]
    prompt_ids: Option<PathBuf>,
    /// Width in pixels, a multiple of 16
    #[arg(long, default_value_t = 1024)]
    width: usize,
    /// Height in pixels, a multiple of 16
    #[arg(long, default_value_t = 1024)]
    height: usize,
    /// Denoising steps
    #[arg(long, default_value_t = 28)]
    steps: usize,
    /// Distilled guidance; models without that input ignore it
    #[arg(long, default_value_t = 3.5)]
    guidance: f64,
    /// What to keep away from (classifier-free guidance; doubles the time)
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// How strongly to keep away from the negative prompt
    #[arg(long, default_value_t = 4.0, requires = "negative_prompt")]
    true_guidance: f64,
    /// Start noise; equal seeds give equal pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures a prompt
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Start noise from a file: safetensors with `noise` [B, C, h, w]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Writes the final latents here and decodes no pictures
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", required_unless_present = "latents")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let Args { model, lora: loras, prompt: prompts, prompt_ids, width, height, steps, guidance, .. } = args;
    let Args { seed, count, noise, latents, output, negative_prompt, true_guidance, .. } = args;
    let negative = negative_prompt.map(|prompt| (prompt, true_guidance));
    #[rustfmt::skip] // one field a line would hide that nothing happens here
    let request = GenerateRequest {
        model, loras, prompts, prompt_ids, negative, width, height, steps, guidance, seed, count, noise, latents,
        output,
    };
    pipelines::generate(&request, &global.device.open()?)?.iter().try_for_each(|file| print(file.display()))
}

/// `FILE@SCALE` or `FILE`. What follows the last `@` is a scale only if it is a number.
fn lora(text: &str) -> std::result::Result<(PathBuf, f64), std::convert::Infallible> {
    let scale = |text: &str| text.parse::<f64>().ok().filter(|scale| scale.is_finite());
    let scaled = text.rsplit_once('@').and_then(|(file, end)| Some((file.into(), scale(end)?)));
    Ok(scaled.unwrap_or_else(|| (text.into(), 1.0)))
}
