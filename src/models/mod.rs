//! The networks, with the names their checkpoints use.

mod segments;

pub mod flux;
pub mod text;
pub mod unet;
pub mod vae;

pub use segments::{Inputs, Segment, Segmented, State};
