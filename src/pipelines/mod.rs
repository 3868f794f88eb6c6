//! From weights to pictures; inference only.
//!
//! ```text
//! prompts ─► ModelEncoders ─┐
//! picture ─► encode ────────┴─► Request ─► Pipeline::generate ─► latents ─► decode ─► picture
//! ```
//!
//! A [`Pipeline`] brings a network, a VAE and a sampler; the loop, guidance, image-to-image and inpainting are written once, in
//! its provided methods and in [`Request`]. [`generate()`] and [`batch()`] go from files to files.

mod batch;
mod batch_report;
mod encoders;
mod flux;
mod generate;
mod input;
mod kind;
mod parts;
mod picture;
mod pipeline;
mod plan;
mod request;
mod setup;
mod stable_diffusion;
mod studio;
mod similarity;

pub use batch::{BatchRequest, Choices, batch};
pub use batch_report::{BatchReport, Done, Skipped, Work};
pub use encoders::ModelEncoders;
pub use flux::FluxPipeline;
pub use generate::{GenerateRequest, generate};
pub use kind::ModelKind;
pub use pipeline::{LARGEST_SIDE, Pipeline, Step};
pub use request::{Condition, Request, Start};
pub use setup::Setup;
pub use similarity::{EditScore, Similarity};
pub use stable_diffusion::{InstructPix2PixPipeline, StableDiffusionPipeline};
