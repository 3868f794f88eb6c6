//! Restoring trained parameters from a checkpoint.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use super::Checkpoint;
use crate::{
    error::Result,
    lora::Lora,
    models::Network,
    nn::Parameters,
    training::{
        Mode, TrainConfig,
        step::trainable::{Trainable, assign},
    },
    weights::TensorFile,
};

impl Trainable {
    /// The trained parameters of a checkpoint, on `device`; with `averaged`, their EMA if there is one. Those of a full run go into
    /// `model`.
    ///
    /// # Errors
    /// A file is missing or broken, or does not fit the model.
    pub fn read(
        config: &TrainConfig,
        checkpoint: &Checkpoint,
        averaged: bool,
        model: &mut impl Network,
        device: &Device,
    ) -> Result<Self> {
        let path = checkpoint.trained(averaged)?;
        match config.training.mode {
            Mode::Lora => {
                let mut lora = Lora::read(path)?.to_device(device);
                // The configured value; the file holds only 32 bits of it.
                lora.layers.iter_mut().for_each(|layer| layer.alpha = config.lora.alpha());
                Ok(Self::Lora(lora))
            }
            Mode::Full => {
                let weights = rows(&TensorFile::open(path)?, model, device)?;
                assign(model, &weights);
                Ok(Self::Full)
            }
        }
    }

    /// The EMA of a checkpoint by the names of the parameters, each as one row; `None` if it has none.
    ///
    /// # Errors
    /// The file is missing or broken, or does not fit.
    pub fn means(
        &self,
        checkpoint: &Checkpoint,
        model: &mut impl Network,
        device: &Device,
    ) -> Result<Option<BTreeMap<String, Tensor<1>>>> {
        if !checkpoint.state()?.averaged {
            return Ok(None);
        }
        let path = checkpoint.trained(true)?;
        Ok(Some(match self {
            Self::Full => rows(&TensorFile::open(path)?, model, device)?,
            Self::Lora(_) => {
                let mut means = BTreeMap::new();
                let mut lora = Lora::read(path)?;
                Parameters::parameters(&mut lora, "", &mut |name, parameter| {
                    means.insert(name.to_string(), parameter.flat().to_device(device));
                });
                means
            }
        }))
    }
}

/// The tensors of a file by the names of `parameters`, each as one row.
///
/// # Errors
/// One is missing or has another shape.
fn rows(file: &TensorFile, parameters: &mut impl Parameters, device: &Device) -> Result<BTreeMap<String, Tensor<1>>> {
    let mut shapes = BTreeMap::new();
    parameters.parameters("", &mut |name, parameter| _ = shapes.insert(name.to_string(), parameter.shape()));
    shapes.into_iter().map(|(name, shape)| file.row(&name, &shape, device).map(|row| (name, row))).collect()
}
