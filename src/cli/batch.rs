//! `kiln batch`

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Global, memory::PlanArgs, print, sampling::SamplingArgs, worker::QueueArgs};
use crate::{
    config,
    generation::{self, BatchRequest, Choices},
    training::stop_on_signals,
};

/// Runs all images of a folder through image-to-image or editing, in batches, and reports time and memory
///
/// Each image gets a model, a prompt and a denoising strength: the ones given here, or a random choice from the lists `models`,
/// `prompts` and `strengths` of the --config file, seeded by the name of the image. With --queue, workers on other machines generate
/// the images; models are named as in their configurations.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of images; large ones are processed at the model's resolution and scaled back
    #[arg(value_name = "DIR", value_parser = super::path())]
    folder: PathBuf,
    /// Process only the image with this file name
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Lists of models, prompts and strengths to choose from (TOML)
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    config: Option<PathBuf>,
    /// Model: a folder in diffusers' layout, `org/name`, or `FILE@MODEL`; repeat to choose one at random per image
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// Prompt, or instruction for an editing model; repeat to choose one at random per image
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Denoising strength [default: 0.8]; repeat to choose one at random per image
    #[arg(long)]
    strength: Vec<f64>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of the noise and of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images per batch, all of one size, model and strength
    #[arg(long, default_value_t = 4, conflicts_with = "queue")]
    batch_size: usize,
    /// Folder for the results, named like their inputs, and for `report.json`
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    output: PathBuf,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    plan: PlanArgs,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let choices: Option<Choices> = args.config.map(|path| config::load(path, &[])).transpose()?;
    let mut choices = choices.unwrap_or_default();
    for (own, given) in [(&mut choices.models, args.model), (&mut choices.prompts, args.prompt)] {
        if !given.is_empty() {
            *own = given;
        }
    }
    if !args.strength.is_empty() {
        choices.strengths = args.strength;
    }
    let Args { folder, image, sampling, seed, batch_size, output, queue, plan, .. } = args;
    let ((sampling, loras), (memory, dry_run)) = (sampling.into(), plan.given());
    #[rustfmt::skip] // one field a line would hide that nothing happens here
    let request = BatchRequest { folder, image, choices, loras, sampling, seed, batch_size, output, memory };
    stop_on_signals()?;
    if let Some(cluster) = queue.over(None) {
        return super::worker::feed(&request, &cluster, dry_run);
    }
    match dry_run {
        true => print(generation::plan_batch(&request, &global.open()?)?),
        false => print(generation::batch(&request, &global.open()?).context("not all images were processed")?),
    }
}
