//! `export`: what a run trained, as files that other programs load.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use super::{CONFIG, Mode, TrainConfig, checkpoint::Checkpoint};
use crate::{
    error::{Error, Result},
    hub,
    lora::{self, Lora},
    weights::{TensorFile, Values, export_folder},
};

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// The layout of an adapter's file; `None` is diffusers'. A whole model has but one layout.
    pub format: Option<lora::Format>,
    /// Number format of the tensors: f32, bf16 or f16.
    pub dtype: FloatDType,
    /// What was trained itself, even if there is a running mean of it.
    pub raw: bool,
}

/// Writes what a checkpoint, or a run's newest one, holds: an adapter as a LoRA file, a fully trained model as a folder in the
/// layout of diffusers.
///
/// # Errors
/// `path` is neither, `output` cannot be written, or what was written does not read back as what it should be.
pub fn export(path: &Path, output: &Path, options: ExportOptions) -> Result<()> {
    let (run, mut checkpoints) = Checkpoint::resolve(path)?;
    let checkpoint = checkpoints.pop().expect("at least one was found");
    let mode = checkpoint.mode();
    let file = checkpoint.trained(mode, !options.raw);
    let report = match mode {
        Mode::Lora => {
            let format = options.format.unwrap_or(lora::Format::Diffusers);
            lora::export(&Lora::read(file)?, output, format, options.dtype)?.to_string()
        }
        Mode::Full => {
            if options.format.is_some() {
                let problem = "is for adapters, and this run trained the whole model";
                return Err(Error::setting("--format", problem).hint("leave it out: the model is written as a folder"));
            }
            let config = TrainConfig::load(run.join(CONFIG), &[])?;
            let base = hub::resolve(&config.model.path)?;
            export_folder(base, &values(&TensorFile::open(file)?)?, output, options.dtype)?.to_string()
        }
    };
    tracing::info!("{report}"); // not inside: what a quiet log does not show is not evaluated
    Ok(())
}

/// All tensors of a file.
fn values(file: &TensorFile) -> Result<BTreeMap<String, Values>> {
    let read = |name: String| {
        let data = file.read_f32(&name)?;
        let shape = data.shape.to_vec();
        let row = TensorData::new(data.into_vec::<f32>().expect("read as f32"), [shape.iter().product::<usize>()]);
        Ok((name, Values { shape, numbers: Tensor::from_data(row, &Device::flex()) }))
    };
    file.names().into_iter().map(read).collect()
}
