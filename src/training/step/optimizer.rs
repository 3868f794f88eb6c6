//! AdamW with torch's semantics, and clipping by the norm of all gradients together.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use crate::{
    error::Result,
    kernels,
    nn::Parameters,
    training::{OptimizerConfig, step::backward::Gradients},
    weights::{TensorFile, Values},
};

/// AdamW and its moments, by the name of each parameter.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    steps: u64,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// Starts with empty moments.
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// What the common norm of all gradients is clipped to; 0: not at all.
    pub fn max_grad_norm(&self) -> f64 {
        self.config.max_grad_norm
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates `parameters` at `learning_rate`. A parameter without a gradient stays as it is.
    pub fn step(&mut self, learning_rate: f64, parameters: &mut impl Parameters, mut gradients: Gradients) {
        self.steps += 1;
        let update = kernels::AdamW {
            learning_rate,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            step: self.steps,
        };
        parameters.parameters("", &mut |name, parameter| {
            let Some(gradient) = gradients.remove(name) else { return };
            let [mean, square] =
                self.moments.remove(name).unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
            parameter.update(|value| {
                let (value, mean, square) = kernels::adamw(value, gradient, mean, square, &update);
                self.moments.insert(name.into(), [mean, square]);
                value
            });
        });
    }

    /// All moments, for a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`.
    pub fn tensors(&self) -> BTreeMap<String, Values> {
        let values = |row: &Tensor<1>| Values { shape: row.dims().into(), numbers: row.clone() };
        let named = self.moments.iter().flat_map(|(name, [mean, square])| {
            [(format!("{name}.exp_avg"), values(mean)), (format!("{name}.exp_avg_sq"), values(square))]
        });
        named.collect()
    }

    /// Continues from the moments of a checkpoint after `steps` steps.
    ///
    /// # Errors
    /// The file lacks a moment or holds one of another shape.
    pub fn restore(
        config: OptimizerConfig,
        steps: u64,
        file: &TensorFile,
        parameters: &mut impl Parameters,
        device: &Device,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        let mut problem = None;
        parameters.parameters("", &mut |name, parameter| {
            if problem.is_some() || !file.has(&format!("{name}.exp_avg")) {
                return; // it never had a gradient
            }
            let count = parameter.shape().iter().product();
            let read = |kind: &str| file.row(&format!("{name}.{kind}"), &[count], device);
            match read("exp_avg").and_then(|mean| Ok([mean, read("exp_avg_sq")?])) {
                Ok(both) => _ = moments.insert(name.to_string(), both),
                Err(e) => problem = Some(e),
            }
        });
        match problem {
            Some(problem) => Err(problem),
            None => Ok(Self { config, steps, moments }),
        }
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
    let norm = kernels::sum_of_squares(gradients.values().cloned()).sqrt() * share;
    let factor = match max_norm > 0.0 {
        true => ((norm.clone() + 1e-6).recip() * max_norm).clamp_max(1.0) * share,
        false => norm.ones_like() * share,
    };
    gradients.values_mut().for_each(|gradient| *gradient = gradient.clone() * factor.clone());
    norm
}
