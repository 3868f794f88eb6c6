//! The LoRA files of a request.

use std::path::PathBuf;

/// The LoRA files of a request.
#[derive(Clone, Debug, Default)]
pub struct LoraFiles {
    /// Of diffusers, PEFT, kohya or another program, each with its scale.
    pub files: Vec<(PathBuf, f64)>,
    /// Whether what they hold for text encoders is left out.
    pub no_text_encoders: bool,
}
