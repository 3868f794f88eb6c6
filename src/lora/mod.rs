//! LoRA adapters: targets, files, merging.

mod config;
mod targets;

pub use config::{Init, LoraConfig};
pub use targets::Targets;

use std::path::Path;

use crate::error::{Error, Result};

/// Whose tensor names a LoRA file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// diffusers.
    Diffusers,
    /// kohya.
    Kohya,
    /// ComfyUI.
    ComfyUi,
}

/// Says what a safetensors file is.
///
/// # Errors
/// Always, until the module is merged.
pub fn inspect(file: &Path) -> Result<String> {
    Err(Error::file(file, "this build cannot inspect files yet"))
}
