//! AdamW with torch's semantics, and clipping by the norm of all gradients together.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::{OptimizerConfig, backward::Gradients};
use crate::{
    error::{Error, Result},
    kernels,
    weights::TensorFile,
};

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

/// Scales all gradients by `share`, then clips them to `max_norm` (0: not at all). Returns their common norm as it was before
/// clipping, still on the device.
///
/// As `torch.nn.utils.clip_grad_norm_`: every gradient is multiplied by `min(1, max_norm / (norm + 1e-6))`.
pub fn clip(gradients: &mut Gradients, share: f64, max_norm: f64) -> Tensor<1> {
    let squares = gradients.values().map(|gradient| gradient.clone().square().sum());
    let sum = squares.reduce(|a, b| a + b).expect("an adapter has at least one tensor with a gradient");
    let norm = sum.sqrt() * share;
    let factor = match max_norm > 0.0 {
        true => ((norm.clone() + 1e-6).recip() * max_norm).clamp_max(1.0) * share,
        false => norm.ones_like() * share,
    };
    let factor = factor.reshape([1, 1]);
    gradients.values_mut().for_each(|gradient| *gradient = gradient.clone() * factor.clone());
    norm
}
