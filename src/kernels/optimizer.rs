//! The parameter update.

use burn::tensor::Tensor;

/// What one AdamW update depends on besides the tensors.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Of this step.
    pub learning_rate: f64,
    /// Decay of the running mean.
    pub beta1: f64,
    /// Decay of the running square.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Per unit of learning rate.
    pub weight_decay: f64,
    /// The number of this step, from 1.
    pub step: u64,
}

/// One AdamW update as torch computes it: the new `(parameter, mean, square)`. All plain f32.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    mean: Tensor<D>,
    square: Tensor<D>,
    update: &AdamW,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let parameter = parameter * (1.0 - update.learning_rate * update.weight_decay);
    let mean = mean * update.beta1 + gradient.clone() * (1.0 - update.beta1);
    let square = square * update.beta2 + gradient.square() * (1.0 - update.beta2);
    let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
    let denominator = square.clone().sqrt() / correction(update.beta2).sqrt() + update.epsilon;
    let parameter = parameter - mean.clone() / denominator * (update.learning_rate / correction(update.beta1));
    (parameter, mean, square)
}
