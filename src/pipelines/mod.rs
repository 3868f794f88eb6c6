//! From weights to images; inference only.

use std::path::PathBuf;

use burn::tensor::Device;

use crate::error::{Error, Result};

/// What `kiln generate` is asked for.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Folder or `org/name`.
    pub model: String,
    /// Files and strengths.
    pub loras: Vec<(PathBuf, f64)>,
    /// Texts.
    pub prompts: Vec<String>,
    /// Tokens instead of texts.
    pub prompt_ids: Option<PathBuf>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Distilled guidance.
    pub guidance: f64,
    /// Of the noise.
    pub seed: u64,
    /// Pictures a prompt.
    pub count: usize,
    /// Noise from a file.
    pub noise: Option<PathBuf>,
    /// File for latents instead of pictures.
    pub latents: Option<PathBuf>,
    /// Folder for pictures.
    pub output: Option<PathBuf>,
}

/// Generates; the files written.
///
/// # Errors
/// Always, until the module is merged.
pub fn generate(request: &GenerateRequest, _device: &Device) -> Result<Vec<PathBuf>> {
    Err(Error::file(&request.model, "this build cannot generate yet"))
}
