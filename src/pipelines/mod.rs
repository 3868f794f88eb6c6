//! From weights to images; inference only.

mod encoders;
mod flux;
mod generate;
mod similarity;

pub use encoders::FluxEncoders;
pub use flux::{FluxPipeline, Request};
pub use generate::{GenerateRequest, generate};
pub use similarity::{EditScore, Similarity};
