//! Scaled dot-product attention.

use burn::tensor::{FloatDType, Tensor, activation};

/// `softmax(q·kᵀ/√K)·v`, every query seeing every key.
///
/// `q` `[B, N, L, K]`, `k` and `v` `[B, N, S, K]` → `[B, N, L, K]`; the softmax is computed in f32.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let scale = 1.0 / (q.dims()[3] as f64).sqrt();
    attention_biased(q, k, v, None, scale)
}

/// `softmax(scale·q·kᵀ + bias)·v`, with an additive `bias` that broadcasts to `[B, N, L, S]` (a causal mask, T5's relative
/// positions). For the text encoders: no fused form.
pub fn attention_biased(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    let dtype: FloatDType = q.dtype().into();
    let scores = (q * scale).matmul(k.transpose()).cast(FloatDType::F32);
    let scores = match bias {
        Some(bias) => scores + bias,
        None => scores,
    };
    activation::softmax(scores, 3).cast(dtype).matmul(v)
}
