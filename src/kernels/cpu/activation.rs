//! Activations.

use burn_flex::FlexTensor;

use super::{
    loops::build,
    simd::{fill, sigmoid},
    tensor::{contiguous, dims, raw_tensor, tensor, values},
};
use crate::kernels::{
    formulas::{Activation, CUBIC, ROOT},
    operation::RawTensor,
};

/// `½(1 + tanh u) = σ(2u)`: the tanh form needs no tanh, and keeps its precision where tanh is near -1.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * sigmoid(2.0 * ROOT * (CUBIC * x * x).mul_add(x, x)).0
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (s, t) = sigmoid(2.0 * ROOT * (CUBIC * x * x).mul_add(x, x));
    (x * s * t).mul_add(2.0 * ROOT * (3.0 * CUBIC * x).mul_add(x, 1.0), s)
}

/// The derivative of [`swish`].
#[inline(always)]
pub fn silu_slope(x: f32) -> f32 {
    let (s, t) = sigmoid(x);
    (x * s).mul_add(t, s)
}

/// `f(x, g)` of each pair of elements.
fn map(x: &[f32], g: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    // Any row length works: an activation does not depend on the shape.
    const ROW: usize = 1024;
    build(
        x.len(),
        ROW,
        #[inline(always)]
        |row, place| {
            let (start, end) = (row * ROW, row * ROW + place.len());
            fill(
                place,
                [&x[start..end], &g[start..end]],
                #[inline(always)]
                |[x, g]| f(x, g),
            );
        },
    )
}

/// `silu(x)`.
#[inline(always)]
pub fn swish(x: f32) -> f32 {
    x * sigmoid(x).0
}

/// The activation of each element.
pub fn forward<const D: usize>(kind: Activation, x: FlexTensor) -> RawTensor {
    let x = contiguous(x);
    let input = values(&x);
    let y = match kind {
        Activation::GeluTanh => map(
            input,
            input,
            #[inline(always)]
            |x, _| gelu(x),
        ),
        Activation::Silu => map(
            input,
            input,
            #[inline(always)]
            |x, _| swish(x),
        ),
    };
    raw_tensor(tensor::<D>(y, dims(&x)))
}

/// The derivative of the activation at each `x` times the gradient.
pub fn backward<const D: usize>(kind: Activation, both: [FlexTensor; 2]) -> RawTensor {
    let [x, g] = both.map(contiguous);
    let dx = match kind {
        Activation::GeluTanh => map(
            values(&x),
            values(&g),
            #[inline(always)]
            |x, g| g * gelu_slope(x),
        ),
        Activation::Silu => map(
            values(&x),
            values(&g),
            #[inline(always)]
            |x, g| g * silu_slope(x),
        ),
    };
    raw_tensor(tensor::<D>(dx, dims(&x)))
}
