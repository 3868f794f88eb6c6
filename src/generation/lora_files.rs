//! The LoRA files of a request.

use std::path::PathBuf;

/// The LoRA files of a request.
#[derive(Clone, Debug, Default)]
pub struct LoraFiles {
    /// Files of diffusers, PEFT, kohya or another program, each with its scale.
    pub files: Vec<(PathBuf, f64)>,
    /// Whether their parts for text encoders are left out.
    pub no_text_encoders: bool,
}
