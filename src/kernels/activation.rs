//! Activations.

use burn::tensor::{Tensor, activation};

/// `gelu(x)` in its tanh form: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (FLUX's and T5's "gelu_new").
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu_approximate(x)
}
