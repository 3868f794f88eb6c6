//! What a run changes: adapters beside the model, or the model itself.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use super::{Mode, TrainConfig, checkpoint::Checkpoint};
use crate::{
    error::{Error, Result},
    lora::Lora,
    models::Network,
    nn::{Adapters, Parameter, Parameters},
    rng::Seed,
    weights::{TensorFile, Values},
};

/// The numbers that are trained.
pub(super) enum Trained {
    /// Beside the model, which wears them while it is lent.
    Lora(Lora),
    /// The model's own.
    Full,
}

impl Trained {
    /// Untrained numbers for `model`.
    ///
    /// # Errors
    /// A LoRA target matches no layer; or the whole model is to be trained, and it is quantized.
    pub fn new(config: &TrainConfig, model: &impl Network) -> Result<Self> {
        match config.training.mode {
            Mode::Lora => Ok(Self::Lora(Lora::init(
                &config.lora,
                Seed(config.run.seed),
                &model.layers(),
                model.lender().device(),
            )?)),
            Mode::Full => trainable(model).map(|()| Self::Full),
        }
    }

    /// The numbers of a checkpoint, on `device`, with those of the running mean if `averaged` is asked for and there is one.
    /// For a full run they go into `model`.
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
                let mut lora = Lora::read(path)?;
                for layer in &mut lora.layers {
                    layer.a = layer.a.clone().to_device(device);
                    layer.b = layer.b.clone().to_device(device);
                    // Exactly as configured; the file holds 32 bits of it.
                    layer.alpha = config.lora.alpha();
                }
                Ok(Self::Lora(lora))
            }
            Mode::Full => {
                trainable(model)?;
                let weights = rows(&TensorFile::open(path)?, model, device)?;
                assign(model, &weights);
                Ok(Self::Full)
            }
        }
    }

    /// The running means of a checkpoint by the names of the parameters, each as one row; `None` if it has none.
    ///
    /// # Errors
    /// Their file is missing or broken, or does not fit.
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

    /// # Errors
    /// The adapters are for another model.
    pub fn check(&self, model: &impl Network) -> Result<()> {
        match self {
            Self::Lora(lora) => lora.check(&model.layers()),
            Self::Full => Ok(()),
        }
    }

    /// What the model wears; nothing where it is trained itself.
    pub fn adapters(&self) -> Option<Adapters> {
        match self {
            Self::Lora(lora) => Some(lora.adapters(1.0)),
            Self::Full => None,
        }
    }

    /// Calls `visit` with every trained tensor.
    pub fn parameters(&mut self, model: &mut impl Network, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        match self {
            Self::Lora(lora) => Parameters::parameters(lora, "", visit),
            Self::Full => model.parameters("", visit),
        }
    }

    /// All trained tensors for a file, bit for bit: an adapter as its files have it, weights under the model's names. Where
    /// `means` has a tensor, its numbers are taken instead.
    pub fn tensors(
        &mut self,
        model: &mut impl Network,
        means: Option<&BTreeMap<String, Tensor<1>>>,
    ) -> BTreeMap<String, Values> {
        if let Self::Lora(lora) = self {
            let mut lora = lora.clone();
            assign(&mut lora, means.unwrap_or(&BTreeMap::new()));
            return lora.tensors().into_iter().map(|(name, data)| (name, data.into())).collect();
        }
        let mut tensors = BTreeMap::new();
        self.parameters(model, &mut |name, parameter| {
            let mean = means.and_then(|means| means.get(name)).cloned();
            let numbers = mean.unwrap_or_else(|| parameter.flat());
            tensors.insert(name.to_string(), Values { shape: parameter.shape(), numbers });
        });
        tensors
    }
}

/// Whether the weights of a model can be trained themselves.
///
/// # Errors
/// Some are quantized.
fn trainable(model: &impl Network) -> Result<()> {
    model.lender().quantized().map_or(Ok(()), |format| {
        let problem = format!("`full` trains the weights themselves, and those of this model are stored as {format}");
        Err(Error::setting("training.mode", problem)
            .hint("train an adapter (`training.mode = \"lora\"`), or take the model in bfloat16 or float32"))
    })
}

/// The trained numbers of a run as one thing with names.
pub(super) struct Both<'a, M>(pub &'a mut Trained, pub &'a mut M);

impl<M: Network> Parameters for Both<'_, M> {
    fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.0.parameters(self.1, visit);
    }
}

/// Sets each parameter that `values` names, to one row of numbers.
pub(super) fn assign(parameters: &mut impl Parameters, values: &BTreeMap<String, Tensor<1>>) {
    parameters.parameters("", &mut |name, parameter| {
        if let Some(value) = values.get(name) {
            parameter.update(|_| value.clone());
        }
    });
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
