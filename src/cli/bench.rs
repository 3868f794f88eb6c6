//! `kiln bench`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use super::{Global, print};
use crate::bench::{self, Files, Model, Options, Trained};

/// Measures kiln at full size without weights: time and memory of steps, encoders, loading and operations
///
/// Weights and inputs are random. Results go to standard output as Markdown, and to files after every case.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which models [default: all; flux with --layers]
    #[arg(long, value_name = "flux|unet|all")]
    model: Option<Which>,
    /// Only these cases: train, sample, vae_encode, vae_decode, t5, clip, load, operations, or an operation's name
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    only: Vec<String>,
    /// Pixels of a picture's sides [default: 512,768,1024; of the UNet 256,512]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    size: Vec<usize>,
    /// Pictures at a time [default: 1,2,4; of the UNet 1,4]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    batch: Vec<usize>,
    /// What is trained [default: attention,all; of the UNet full,attention]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TARGETS,…")]
    targets: Vec<Trained>,
    /// Rank of the LoRA
    #[arg(long, default_value_t = 16, value_name = "N")]
    rank: usize,
    /// Only so many of FLUX's double and single blocks
    #[arg(long, value_delimiter = ',', num_args = 1, value_name = "DOUBLE,SINGLE")]
    layers: Vec<usize>,
    /// Small models of the same layout, for a CPU
    #[arg(long)]
    small: bool,
    /// A folder with a FLUX transformer for the case `load`, instead of one with a few blocks that is written for it
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    weights: Option<PathBuf>,
    /// Measured runs after the first
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeats: usize,
    /// A program that measures the same, such as "python3 benches/peer.py"
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// Writes the results as JSON
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    json: Option<PathBuf>,
    /// Writes the results as Markdown
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Which {
    Flux,
    Unet,
    All,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let Args { model, only, size: sizes, batch: batches, targets, rank, layers, small, weights, repeats, .. } = args;
    let models = match model.unwrap_or(if layers.is_empty() { Which::All } else { Which::Flux }) {
        Which::Flux => vec![Model::Flux],
        Which::Unet => vec![Model::Unet],
        Which::All => vec![Model::Flux, Model::Unet],
    };
    let options = Options { models, only, sizes, batches, targets, rank, layers, small, weights, repeats };
    let device = global.open()?;
    let files = Files { json: args.json, markdown: args.output };
    print(bench::run(&options, args.peer.as_deref(), &files, &device)?)
}
