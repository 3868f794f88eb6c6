//! AdamW with torch's semantics, and clipping by the norm of all gradients together.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::backward::Gradients;
use crate::{
    error::{Error, Result},
    kernels,
    weights::TensorFile,
};

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    #[default]
    AdamW,
}

/// The `[optimizer]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// `adamw`.
    pub name: OptimizerName,
    /// The full learning rate, before the schedule. Halve it if the samples burn in; the right value depends on `lora.init`.
    pub learning_rate: f64,
    /// Decay of the running mean and of the running square of the gradients.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub epsilon: f64,
    /// Share of each weight that is taken away per unit of learning rate.
    pub weight_decay: f64,
    /// Gradients are scaled down together when their common norm is larger; 0 turns it off.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::AdamW,
            learning_rate: 1e-4,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 1e-4,
            max_grad_norm: 1.0,
        }
    }
}

/// AdamW and its moments, by the name of each parameter.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    steps: u64,
    moments: BTreeMap<String, [Tensor<2>; 2]>,
}

impl AdamW {
    /// Starts with empty moments.
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates `parameters` at `learning_rate`. A parameter without a gradient stays as it is.
    pub fn step<'a>(
        &mut self,
        learning_rate: f64,
        parameters: impl IntoIterator<Item = (String, &'a mut Tensor<2>)>,
        mut gradients: Gradients,
    ) {
        self.steps += 1;
        let update = kernels::AdamW {
            learning_rate,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            step: self.steps,
        };
        for (name, parameter) in parameters {
            let Some(gradient) = gradients.remove(&name) else { continue };
            let [mean, square] =
                self.moments.remove(&name).unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
            let (value, mean, square) = kernels::adamw(parameter.clone(), gradient, mean, square, &update);
            *parameter = value;
            self.moments.insert(name, [mean, square]);
        }
    }

    /// All moments, for a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let named = self.moments.iter().flat_map(|(name, [mean, square])| {
            [(format!("{name}.exp_avg"), mean.to_data()), (format!("{name}.exp_avg_sq"), square.to_data())]
        });
        named.collect()
    }

    /// Continues from the moments of a checkpoint after `steps` steps.
    ///
    /// # Errors
    /// The file lacks a moment or holds one of another shape.
    pub fn restore<'a>(
        config: OptimizerConfig,
        steps: u64,
        file: &TensorFile,
        parameters: impl IntoIterator<Item = (String, &'a Tensor<2>)>,
        device: &Device,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, parameter) in parameters {
            if !file.has(&format!("{name}.exp_avg")) {
                continue; // it never had a gradient
            }
            let read = |kind: &str| -> Result<Tensor<2>> {
                let key = format!("{name}.{kind}");
                let data = file.read_f32(&key)?;
                if data.shape.as_slice() != parameter.dims() {
                    let problem = format!("tensor `{key}` has shape {:?}, expected {:?}", data.shape, parameter.dims());
                    return Err(Error::file(file.path(), problem));
                }
                Ok(Tensor::from_data(data, device))
            };
            moments.insert(name.clone(), [read("exp_avg")?, read("exp_avg_sq")?]);
        }
        Ok(Self { config, steps, moments })
    }
}

/// Adds `new` to `sum`, name by name.
pub fn accumulate(sum: &mut Gradients, new: Gradients) {
    for (name, gradient) in new {
        let total = match sum.remove(&name) {
            Some(before) => before + gradient,
            None => gradient,
        };
        sum.insert(name, total);
    }
}

/// Scales all gradients by `share`, then clips them: the common norm (as it was before clipping) is returned.
///
/// As `torch.nn.utils.clip_grad_norm_`: every gradient is multiplied by `min(1, max_norm / (norm + 1e-6))`.
pub fn clip(gradients: &mut Gradients, share: f64, max_norm: f64) -> f64 {
    let squares = gradients.values().map(|g| g.clone().square().sum());
    let Some(sum) = squares.reduce(|a, b| a + b) else { return 0.0 };
    // Sync point: the norm is needed on the host to stop a run that has become NaN before the weights do.
    let norm = f64::from(sum.into_scalar::<f32>()).sqrt() * share;
    let coefficient = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let factor = coefficient * share;
    if factor != 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = gradient.clone() * factor;
        }
    }
    norm
}
