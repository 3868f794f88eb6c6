//! `kiln batch`

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Global, memory::MemoryArgs, print, sampling::SamplingArgs};
use crate::{
    config,
    generation::{self, BatchRequest, Choices},
    training::stop_on_signals,
};

/// Changes or edits all pictures of a folder, a batch at a time, and reports time and memory
///
/// Every picture gets a model, a prompt and a strength: those given here, or one of the lists `models`, `prompts` and
/// `strengths` of the --config file, by its name and the seed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pictures; large ones are made smaller, and the results as large as they were
    #[arg(value_name = "DIR", value_parser = super::path())]
    folder: PathBuf,
    /// Only the picture of this name
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Lists to draw from (TOML)
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    config: Option<PathBuf>,
    /// A model in the layout of diffusers; may be repeated: then one is drawn
    #[arg(long, value_name = "DIR")]
    model: Vec<String>,
    /// What to show, or what to do where the model edits; may be repeated: then one is drawn
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// How much to change a picture (0.8 if nothing says); may be repeated: then one is drawn
    #[arg(long)]
    strength: Vec<f64>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Of the noise and the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures made together, of one size, model and strength
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Folder for the results, which have the names of their pictures, and for `report.json`
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    output: PathBuf,
    #[command(flatten)]
    memory: MemoryArgs,
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
    let Args { folder, image, sampling, seed, batch_size, output, memory, .. } = args;
    let (sampling, loras) = sampling.into();
    let request = BatchRequest {
        folder,
        image,
        choices,
        loras,
        sampling,
        seed,
        batch_size,
        output,
        memory: memory.given().unwrap_or_default(),
    };
    stop_on_signals()?;
    print(generation::batch(&request, &global.open()?).context("the folder was not finished")?)
}
