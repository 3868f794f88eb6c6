//! Checks, by their configurations, that the parts of a model folder belong to one model.

use std::path::Path;

use crate::error::{Error, Result};

/// An input width of the denoiser, and the width of the embeddings.
pub(super) struct Widths {
    /// The key in the denoiser's configuration.
    pub key: &'static str,
    /// Its value.
    pub wanted: usize,
    /// The folder of the text encoder.
    pub encoder: &'static str,
    /// The width of its embeddings.
    pub given: usize,
}

/// Checks that the denoiser in the folder `part` of a `model` fits the text encoders.
///
/// # Errors
/// The first pair of widths that differ.
pub(super) fn check(model: &Path, part: &str, widths: &[Widths]) -> Result<()> {
    for Widths { key, wanted, encoder, given } in widths {
        if wanted != given {
            let problem = format!("`{key}` is {wanted}, but the embeddings of {encoder} have {given} values");
            return Err(Error::file(model.join(part).join("config.json"), problem)
                .hint(format!("{part} and {encoder} must belong to the same model")));
        }
    }
    Ok(())
}
