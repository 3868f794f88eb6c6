//! `kiln bench`: speed and memory at full size, without weights.
//!
//! A [`Case`] is a training step, a sampling step, an encoder, loading, or one operation at a size of FLUX.1. Models have the real
//! shapes and random weights, drawn on the GPU directly in its memory; inputs are random. Everything is built for one case and
//! released after it, so that its peak memory is its own.
//!
//! A measurement synchronizes the device before and after a run. The first run is listed separately, because it compiles and tunes
//! kernels. The [`peer`] is another program that measures the same case in its turn, with all of the device's memory except what CUDA
//! itself takes for two programs.

mod subject;
mod machine;
mod measure;
mod operation;
mod case;
mod calls;
pub mod peer;
mod report;
mod markdown;
mod shape;
mod encoders;
mod flux;
mod unet;
mod load;
mod plan;
mod step;
mod run;

pub use case::{Case, Kind, Model, TrainTarget};
pub use machine::Machine;
pub use measure::{Run, Variant, median, watched};
pub use operation::{Operation, Work};
pub use plan::Options;
pub use report::{Report, Row};
pub use run::{Files, run};
pub use shape::unet_vae;
pub use subject::normal;

use crate::rng::Seed;

/// Seed of all random values.
const SEED: Seed = Seed(0);

/// Tokens per prompt of T5 and CLIP. A small model reads fewer T5 tokens.
const TEXT_TOKENS: usize = 512;
const SMALL_TEXT_TOKENS: usize = 64;
const CLIP_TOKENS: usize = 77;
