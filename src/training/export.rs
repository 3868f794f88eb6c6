//! `export`: what a run trained, as files that other programs load.

use std::path::Path;

use burn::tensor::FloatDType;

use super::{Mode, checkpoint::Checkpoint};
use crate::{
    error::Result,
    lora::{self, Lora},
};

/// Writes the adapter of a checkpoint, or of a run's newest one, as a LoRA file.
///
/// # Errors
/// `path` is neither, or the file does not read back as what was written.
pub fn export(path: &Path, output: &Path, format: lora::Format, dtype: FloatDType) -> Result<()> {
    let (_, mut checkpoints) = Checkpoint::resolve(path)?;
    let checkpoint = checkpoints.pop().expect("at least one was found");
    let adapter = Lora::read(checkpoint.trained(Mode::Lora, true))?;
    let report = lora::export(&adapter, output, format, dtype)?;
    tracing::info!("{report}"); // not inside: what a quiet log does not show is not evaluated
    Ok(())
}
