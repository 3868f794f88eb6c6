//! The optimizer's update, in one pass over the parameters.

use burn::tensor::Tensor;

use super::{composed, cpu, dispatch::by_way, formulas::AdamWFactors};

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019), with the semantics of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, the moving average of the gradient.
    pub beta1: f64,
    /// Decay of the second moment, the moving average of the squared gradient.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: each step shrinks the parameter by this times the learning rate.
    pub weight_decay: f64,
    /// The number of this step, from 1, for bias correction: the moments start at zero.
    pub step: u64,
}

impl AdamW {
    fn factors(&self) -> AdamWFactors {
        let &Self { learning_rate, beta1, beta2, epsilon, weight_decay, step } = self;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        AdamWFactors {
            keep: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / correction(beta1),
            root: correction(beta2).sqrt(),
            beta1,
            beta2,
            epsilon,
        }
    }
}

/// One update of `parameter` from its gradient and the moments `m` and `v`; returns parameter and moments. Off-tape f32 tensors
/// of the same shape:
/// `p ← p·(1 - lr·decay) - lr/(1-β₁ᵗ)·m / (√v/√(1-β₂ᵗ) + ε)`.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    m: Tensor<D>,
    v: Tensor<D>,
    options: &AdamW,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let factors = options.factors();
    let outputs = by_way!([parameter, gradient, m, v].map(Tensor::into_dispatch),
        Cpu(inputs) => cpu::adamw::update(inputs, factors.in_f32()).map(Tensor::from_dispatch),
        Cuda(inputs) => cuda::adamw::update(inputs, factors.in_f32()).map(Tensor::from_dispatch),
        Composed(inputs) => composed::adamw::update(inputs.map(Tensor::from_dispatch), &factors),
    );
    outputs.into()
}

/// The sum of the squares of all elements of all `rows`, of which there must be at least one. Off-tape tensors of one dtype.
pub fn sum_of_squares(rows: impl IntoIterator<Item = Tensor<1>>) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    let rows = match super::cuda::all(rows.into_iter().map(Tensor::into_dispatch).collect()) {
        Ok(rows) => return super::cuda::adamw::sum_of_squares(rows),
        Err(rows) => rows.into_iter().map(Tensor::<1>::from_dispatch),
    };
    rows.into_iter().map(|row| row.square().sum()).reduce(|a, b| a + b).expect("at least one row")
}
