//! The trainable parameters of a run: adapters beside the model, or the model itself.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::{
    error::Result,
    lora::{Denoiser, Lora},
    models::Network,
    nn::{Adapters, Parameter, Parameters},
    rng::Seed,
    training::{Mode, TrainConfig},
    weights::FlatTensor,
};

/// The trainable parameters.
pub(in crate::training) enum Trainable {
    /// Adapters beside the model, attached while it is lent.
    Lora(Lora),
    /// The model's own weights.
    Full,
}

impl Trainable {
    /// Initial parameters for `model`, a `denoiser`.
    ///
    /// # Errors
    /// A LoRA target matches no layer.
    pub fn new(config: &TrainConfig, denoiser: Denoiser, model: &impl Network) -> Result<Self> {
        match config.training.mode {
            Mode::Lora => Ok(Self::Lora(Lora::init(
                &config.lora,
                denoiser,
                Seed(config.run.seed),
                &model.layers(),
                model.lender().device(),
            )?)),
            Mode::Full => Ok(Self::Full),
        }
    }

    /// # Errors
    /// The adapters are for another model.
    pub fn check(&self, model: &impl Network) -> Result<()> {
        match self {
            Self::Lora(lora) => lora.check(&model.layers()),
            Self::Full => Ok(()),
        }
    }

    /// The adapters; `None` if the model itself is trained.
    pub fn adapters(&self) -> Option<Adapters> {
        match self {
            Self::Lora(lora) => Some(lora.adapters(1.0)),
            Self::Full => None,
        }
    }

    /// Calls `visit` with every trainable tensor.
    pub fn parameters(&mut self, model: &mut impl Network, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        match self {
            Self::Lora(lora) => Parameters::parameters(lora, "", visit),
            Self::Full => model.parameters("", visit),
        }
    }

    /// All trainable tensors for a file, bit for bit: an adapter in its file layout, weights under the model's names. Values in `means`
    /// replace those of the tensors.
    pub fn tensors(
        &mut self,
        model: &mut impl Network,
        means: Option<&BTreeMap<String, Tensor<1>>>,
    ) -> BTreeMap<String, FlatTensor> {
        if let Self::Lora(lora) = self {
            let mut lora = lora.clone();
            assign(&mut lora, means.unwrap_or(&BTreeMap::new()));
            return lora.tensors().into_iter().map(|(name, data)| (name, data.into())).collect();
        }
        let mut tensors = BTreeMap::new();
        self.parameters(model, &mut |name, parameter| {
            let mean = means.and_then(|means| means.get(name)).cloned();
            let values = mean.unwrap_or_else(|| parameter.flat());
            tensors.insert(name.to_string(), FlatTensor { shape: parameter.shape(), values });
        });
        tensors
    }
}

/// The trainable parameters of a run, by name.
pub(in crate::training) struct TrainableParameters<'a, M>(pub &'a mut Trainable, pub &'a mut M);

impl<M: Network> Parameters for TrainableParameters<'_, M> {
    fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.0.parameters(self.1, visit);
    }
}

/// Sets each parameter named in `values` to one row of values, from any device.
pub(in crate::training) fn assign(parameters: &mut impl Parameters, values: &BTreeMap<String, Tensor<1>>) {
    parameters.parameters("", &mut |name, parameter| {
        if let Some(value) = values.get(name) {
            let (device, shape) = (parameter.flat().device(), parameter.shape());
            parameter.put(value.clone().to_device(&device), &shape);
        }
    });
}
