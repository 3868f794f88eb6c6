//! The gated feed-forward unit of a UNet (GEGLU).

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::{FloatDType, Tensor, activation};

/// `a·gelu(b)` for the halves of each row: `[M, 2·D]` → `[M, D]`.
pub fn forward(x: Tensor<2>) -> Tensor<2> {
    let dtype: FloatDType = x.dtype().into();
    let [a, b] = chunked(x);
    a * activation::gelu(b.cast(FloatDType::F32)).cast(dtype)
}

/// `da = g·b·Φ(b)`, `db = g·a·(Φ(b) + b·φ(b))`, side by side: `x` `[M, 2·D]`, `g` `[M, D]` → `[M, 2·D]`.
pub fn backward([x, g]: [Tensor<2>; 2]) -> Tensor<2> {
    let dtype: FloatDType = x.dtype().into();
    let [a, b] = chunked(x.cast(FloatDType::F32));
    let g = g.cast(FloatDType::F32);
    let distribution = ((b.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let density = (b.clone().square() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    let da = g.clone() * b.clone() * distribution.clone();
    let db = g * a * (distribution + b * density);
    Tensor::cat(vec![da, db], 1).cast(dtype)
}

/// Both halves of the last axis.
fn chunked(x: Tensor<2>) -> [Tensor<2>; 2] {
    let width = x.dims()[1] / 2;
    [0, 1].map(|half| x.clone().narrow(1, half * width, width))
}
