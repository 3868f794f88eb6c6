//! The optimizer.

use burn::tensor::Tensor;

use crate::kernels::formulas::AdamWFactors;

/// Updates a parameter and its moments from its gradient; returns parameter and moments.
pub fn update<const D: usize>([p, g, m, v]: [Tensor<D>; 4], factors: &AdamWFactors) -> [Tensor<D>; 3] {
    let &AdamWFactors { keep, rate, root, beta1, beta2, epsilon } = factors;
    let m = m * beta1 + g.clone() * (1.0 - beta1);
    let v = v * beta2 + g.square() * (1.0 - beta2);
    let denominator = v.clone().sqrt() / root + epsilon;
    [p * keep - m.clone() / denominator * rate, m, v]
}
