//! The networks, with the names their checkpoints use.

pub mod flux;
pub mod text;
pub mod vae;
