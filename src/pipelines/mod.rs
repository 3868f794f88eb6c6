//! From weights to images; inference only.

mod encoders;
mod flux;
mod generate;
mod kind;

pub use encoders::ModelEncoders;
pub use flux::{FluxPipeline, Request};
pub use generate::{GenerateRequest, generate};
pub use kind::ModelKind;
