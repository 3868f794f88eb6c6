//! Matrix products with a weight as checkpoints store it, `[out, in]`.

use burn::tensor::{FloatDType, Tensor};

use super::lift;

/// `x·Wᵀ + b`.
///
/// `x` `[M, in]`, `weight` `[out, in]`, `bias` `[out]` → `[M, out]`. Weight and bias are constants: they get no gradient.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let y = x.clone().matmul(lift(weight, &x).transpose());
    match bias {
        Some(bias) => y + lift(bias, &x).unsqueeze(),
        None => y,
    }
}

/// `y + scale·(x·Aᵀ)·Bᵀ`: what a LoRA adapter adds to the output `y` of its layer.
///
/// The adapter acts on the activation, never on the weight: a dense `W + s·B·A` per layer would have to be kept for the
/// backward pass. `y` `[M, out]`, `x` `[M, in]`, `a` `[rank, in]`, `b` `[out, rank]`, in f32 whatever `x` is.
pub fn low_rank(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64) -> Tensor<2> {
    let dtype: FloatDType = x.dtype().into();
    let (a, b) = (lift(a, &x).cast(dtype), lift(b, &x).cast(dtype));
    y + x.matmul(a.transpose()).matmul(b.transpose()) * scale
}
