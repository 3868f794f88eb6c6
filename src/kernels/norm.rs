//! Normalisation with what always follows it in a transformer block. All statistics are computed in f32.

use burn::tensor::{FloatDType, Tensor};

use super::lift;

/// `LayerNorm(x)·(1 + scale) + shift`, the norm without weights of its own (AdaLN, Peebles & Xie 2022).
///
/// `x` `[B, L, D]`, `shift` and `scale` `[B, D]` → `[B, L, D]`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, epsilon: f64) -> Tensor<3> {
    let dtype: FloatDType = x.dtype().into();
    let x = x.cast(FloatDType::F32);
    let centred = x.clone() - x.mean_dim(2);
    let deviation = (centred.clone().square().mean_dim(2) + epsilon).sqrt();
    let normed = (centred / deviation).cast(dtype);
    normed * (scale.unsqueeze_dim::<3>(1) + 1.0) + shift.unsqueeze_dim::<3>(1)
}

/// Root-mean-square norm over each head with a learned weight, then rotation by position, then heads before tokens.
///
/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` with each angle twice in a row → `[B, N, L, K]`. Neighbours
/// `(2i, 2i+1)` of the last axis are the real and imaginary part of one rotated number (RoFormer, Su et al. 2021).
pub fn rms_norm_rope(x: Tensor<4>, weight: Tensor<1>, cos: Tensor<2>, sin: Tensor<2>, epsilon: f64) -> Tensor<4> {
    let dtype: FloatDType = x.dtype().into();
    let [batch, tokens, heads, width] = x.dims();
    let (weight, cos, sin) = (lift(weight, &x), lift(cos, &x), lift(sin, &x));
    let x = x.cast(FloatDType::F32);
    let deviation = (x.clone().square().mean_dim(3) + epsilon).sqrt();
    let normed = (x / deviation).cast(dtype) * weight.unsqueeze();
    let normed = normed.cast(FloatDType::F32);
    let pairs = normed.clone().reshape([batch, tokens, heads, width / 2, 2]);
    let (real, imaginary) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
    let turned = Tensor::cat(vec![imaginary.neg(), real], 4).reshape([batch, tokens, heads, width]);
    let angles = |t: Tensor<2>| t.reshape([1, tokens, 1, width]);
    (normed * angles(cos) + turned * angles(sin)).cast(dtype).swap_dims(1, 2)
}

/// `x + gate·y`, the gated residual of a modulated block.
///
/// `x` and `y` `[B, L, D]`, `gate` `[B, D]` → `[B, L, D]`.
pub fn gated_add(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    x + y * gate.unsqueeze_dim::<3>(1)
}
