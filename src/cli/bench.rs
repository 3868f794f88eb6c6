//! `kiln bench`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use super::{Global, print};
use crate::bench::{self, Files, Model, Options, TrainTarget};

/// Measures speed and memory at real model sizes, without downloading weights
///
/// Covers training and sampling steps, encoders, loading and single operations. Weights and inputs are random. Results go to
/// standard output as Markdown, and to files after each case.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models to measure [default: all; flux with --layers]
    #[arg(long, value_name = "flux|unet|all")]
    model: Option<Which>,
    /// Measure only these cases: train, sample, vae_encode, vae_decode, t5, clip, load, operations, or an operation's name
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    only: Vec<String>,
    /// Image sizes in pixels per side [default: 512,768,1024; UNet: 256,512]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    size: Vec<usize>,
    /// Batch sizes [default: 1,2,4; UNet: 1,4]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    batch: Vec<usize>,
    /// Trained targets [default: attention,all; UNet: full,attention]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TARGETS,…")]
    targets: Vec<TrainTarget>,
    /// Rank of the LoRA
    #[arg(long, default_value_t = 16, value_name = "N")]
    rank: usize,
    /// Sampling steps
    #[arg(long, default_value_t = 1, value_name = "N")]
    steps: usize,
    /// Number of double and single blocks of FLUX to build
    #[arg(long, value_delimiter = ',', num_args = 1, value_name = "DOUBLE,SINGLE")]
    layers: Vec<usize>,
    /// Use small models of the same layout, for a CPU
    #[arg(long)]
    small: bool,
    /// Folder with a FLUX transformer for the case `load` [default: one with a few blocks, written for the purpose]
    #[arg(long, value_name = "DIR", value_parser = super::path())]
    weights: Option<PathBuf>,
    /// Measured runs, after one warm-up run
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeats: usize,
    /// Another program that measures the same cases, such as "python3 benches/peer.py"
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// Write the results as JSON to this file
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    json: Option<PathBuf>,
    /// Write the results as Markdown to this file
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
    let Args {
        model, only, size: sizes, batch: batches, targets, rank, steps, layers, small, weights, repeats, ..
    } = args;
    let models = match model.unwrap_or(if layers.is_empty() { Which::All } else { Which::Flux }) {
        Which::Flux => vec![Model::Flux],
        Which::Unet => vec![Model::Unet],
        Which::All => vec![Model::Flux, Model::Unet],
    };
    let options = Options { models, only, sizes, batches, targets, rank, steps, layers, small, weights, repeats };
    let files = Files { json: args.json, markdown: args.output };
    print(bench::run(&options, args.peer.as_deref(), &files, &global.open()?)?)
}
