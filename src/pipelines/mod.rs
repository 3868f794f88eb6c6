//! Inference: from weights to images.
//!
//! ```text
//! prompts ─► embeds ─┐
//! image ─► encode ─┴─► Request ─► Pipeline::generate ─► latents ─► decode ─► image
//! ```
//!
//! A [`Pipeline`] provides a network, a VAE and a sampler; the loop, guidance, image-to-image and inpainting are shared, in its
//! provided methods and in [`Request`].

mod size;
pub(crate) mod request;
mod denoising;
pub(crate) mod pipeline;
mod flux;
mod stable_diffusion;
mod similarity;

pub use denoising::Denoising;
pub use flux::FluxPipeline;
pub use pipeline::{OnStep, Outcome, Pipeline, Placement, Step};
pub use request::{Condition, Request, Start};
pub use similarity::{EditScore, Similarity};
pub use size::{ImageSizes, LARGEST_SIDE};
pub use stable_diffusion::{InstructPix2PixPipeline, StableDiffusionPipeline};
