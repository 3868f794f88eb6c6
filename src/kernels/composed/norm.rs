//! Normalization over the last axis.

use burn::tensor::{FloatDType, Tensor};

use super::tokens::per_token;
use crate::kernels::operation::RawTensor;

/// `(x - mean)/deviation` over the last axis, and `1/deviation`, in f32.
fn standardize(x: Tensor<3>, epsilon: f64) -> (Tensor<3>, Tensor<3>) {
    let x = x.cast(FloatDType::F32);
    let centred = x.clone() - x.mean_dim(2);
    let inverse = (centred.clone().square().mean_dim(2) + epsilon).sqrt().recip();
    (centred * inverse.clone(), inverse)
}

/// `standardized(x)·(base + scale) + shift`.
pub fn forward([x, shift, scale]: [RawTensor; 3], base: f32, epsilon: f64) -> RawTensor {
    let x = Tensor::from_dispatch(x);
    let [shift, scale] = [shift, scale].map(|t| per_token(Tensor::from_dispatch(t)));
    let dtype: FloatDType = x.dtype().into();
    let normed = standardize(x, epsilon).0;
    // Rounded to the dtype where torch does: after the norm, including its weights.
    let output = if base == 0.0 {
        let [scale, shift] = [scale, shift].map(|t| t.cast(FloatDType::F32));
        (normed * scale + shift).cast(dtype)
    } else {
        normed.cast(dtype) * (scale + base) + shift
    };
    output.into_dispatch()
}

/// The `wanted` gradients of `x`, shift and scale, from `x`, scale and the gradient of the output.
pub fn backward(
    [x, scale, g]: [RawTensor; 3],
    base: f32,
    epsilon: f64,
    [wants_x, wants_shift, wants_scale]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let [x, g]: [Tensor<3>; 2] = [x, g].map(Tensor::from_dispatch);
    let scale = Tensor::<2>::from_dispatch(scale);
    let dtype: FloatDType = x.dtype().into();
    let (normed, inverse) = standardize(x, epsilon);
    let g = g.cast(FloatDType::F32);
    let over_tokens = |t: Tensor<3>| t.sum_dim(1).squeeze_dim::<2>(1).cast(dtype).into_dispatch();
    let dscale = wants_scale.then(|| over_tokens(g.clone() * normed.clone()));
    let dshift = wants_shift.then(|| over_tokens(g.clone()));
    let dx = wants_x.then(|| {
        let d = g * (per_token(scale).cast(FloatDType::F32) + base);
        let slope = (d.clone() * normed.clone()).mean_dim(2);
        ((d.clone() - d.mean_dim(2) - normed * slope) * inverse).cast(dtype).into_dispatch()
    });
    [dx, dshift, dscale]
}
