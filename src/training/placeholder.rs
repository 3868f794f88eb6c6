//! Stands in for the loop.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};

use super::{Display, TrainConfig};
use crate::{
    error::{Error, Result},
    lora::Format,
};

/// What validation found.
#[derive(Debug, serde::Serialize)]
pub struct ValidationReport {}

impl std::fmt::Display for ValidationReport {
    fn fmt(&self, _: &mut std::fmt::Formatter) -> std::fmt::Result {
        Ok(())
    }
}

/// Fills the cache; its folder.
///
/// # Errors
/// Always, until the module is merged.
pub fn prepare(config: &TrainConfig, _device: &Device, _display: &mut dyn Display) -> Result<PathBuf> {
    Err(Error::file(&config.data.path, "this build cannot prepare yet"))
}

/// Trains; the run folder.
///
/// # Errors
/// Always, until the module is merged.
pub fn train(
    config: &TrainConfig,
    _resume: Option<&Path>,
    _device: &Device,
    _display: &mut dyn Display,
) -> Result<PathBuf> {
    Err(Error::file(&config.model.path, "this build cannot train yet"))
}

/// Measures a checkpoint or a run.
///
/// # Errors
/// Always, until the module is merged.
pub fn validate(path: &Path, _device: &Device) -> Result<ValidationReport> {
    Err(Error::file(path, "this build cannot validate yet"))
}

/// Writes a LoRA file.
///
/// # Errors
/// Always, until the module is merged.
pub fn export(path: &Path, _output: &Path, _format: Format, _dtype: FloatDType) -> Result<()> {
    Err(Error::file(path, "this build cannot export yet"))
}
