//! kiln's own speed and memory at full size, without weights: `kiln bench`.
//!
//! A [`Case`] is one thing to measure: a training step, a sampling step, an encoder, loading, or one operation at a
//! size that FLUX.1 has. Models have the real shapes and weights drawn from a seed, on a GPU straight in its memory;
//! inputs are random. A case is measured by itself: everything is built for it and given back after it, so that its
//! peak of memory is its own.
//!
//! A measurement waits for the device, runs, and waits again; the first is kept apart, for it compiles and tunes
//! kernels. The [`peer`] is another program that measures the same case in its turn, with all of the device's memory but
//! what CUDA itself takes for two programs.

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

/// Of all that is random here.
const SEED: Seed = Seed(0);

/// Tokens of a prompt: T5's, and CLIP's. A small model reads fewer of T5's.
const TEXT_TOKENS: usize = 512;
const SMALL_TEXT_TOKENS: usize = 64;
const CLIP_TOKENS: usize = 77;
