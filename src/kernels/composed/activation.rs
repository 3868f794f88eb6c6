//! Activations.

use burn::tensor::{FloatDType, Tensor, activation};

use crate::kernels::formulas::{Activation, CUBIC, ROOT};

/// The activation of each element.
pub fn forward<const D: usize>(kind: Activation, x: Tensor<D>) -> Tensor<D> {
    match kind {
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Silu => activation::silu(x),
    }
}

/// The derivative of the activation at each `x`, computed in f32, times the gradient.
pub fn backward<const D: usize>(kind: Activation, x: Tensor<D>, g: Tensor<D>) -> Tensor<D> {
    let dtype: FloatDType = x.dtype().into();
    let x = x.cast(FloatDType::F32);
    let (argument, steep) = match kind {
        Activation::GeluTanh => {
            let square = x.clone().square();
            let argument = (square.clone() * CUBIC + 1.0) * x.clone() * (2.0 * ROOT);
            (argument, (square * (3.0 * CUBIC) + 1.0) * (2.0 * ROOT))
        }
        Activation::Silu => (x.clone(), x.ones_like()),
    };
    let s = activation::sigmoid(argument);
    let slope = s.clone() + x * s.clone() * (-s + 1.0) * steep;
    slope.cast(dtype) * g
}
