//! Scaled dot-product attention.

mod cpu;
pub(super) mod products;

use burn::tensor::{FloatDType, Tensor, activation};

use super::{
    cpu::floats,
    lift,
    matmul::{assert_one_dtype, matmul},
    operation::{Operation, Plain, apply},
};

/// `softmax(q·kᵀ/√K)·v`, every query seeing every key.
///
/// `q` `[B, N, L, K]`, `k` and `v` `[B, N, S, K]` → `[B, N, L, K]`; the softmax is computed in f32. The scores of no more
/// than a few rows of each head (CPU, f32) or of a few heads (elsewhere) exist at a time, and the backward pass computes
/// them again.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    assert_one_dtype("attention", &[q.dtype(), k.dtype(), v.dtype()]);
    apply(Attention, [q.into_dispatch(), k.into_dispatch(), v.into_dispatch()])
}

/// `softmax(scale·q·kᵀ + bias)·v`, with an additive `bias` that broadcasts to `[B, N, L, S]` (a causal mask, T5's relative
/// positions). For the text encoders: no fused form.
pub fn attention_biased(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    let dtype: FloatDType = q.dtype().into();
    let bias = bias.map(|bias| lift(bias, &q));
    let scores = matmul(q * scale, k.transpose()).cast(FloatDType::F32);
    let scores = match bias {
        Some(bias) => scores + bias.cast(FloatDType::F32),
        None => scores,
    };
    matmul(activation::softmax(scores, 3).cast(dtype), v)
}

#[derive(Clone, Debug)]
struct Attention;

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    q: Plain,
    k: Plain,
    v: Plain,
    /// Only of the CPU's own form.
    rows: Option<cpu::Saved>,
}

impl Operation<3> for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, Saved) {
        let [q, k, v] = inputs.clone();
        let (output, rows) = match floats(inputs) {
            Ok(inputs) => {
                let (output, rows) = cpu::forward(inputs);
                (output, Some(rows))
            }
            Err(inputs) => (products::forward(inputs, products::AT_ONCE), None),
        };
        (output, Saved { q, k, v, rows })
    }

    fn backward(self, saved: Saved, gradient: Plain, wanted: [bool; 3]) -> [Option<Plain>; 3] {
        let Saved { q, k, v, rows } = saved;
        let all = [q, k, v, gradient];
        let gradients = match rows {
            Some(rows) => cpu::backward(all, rows),
            None => products::backward(all, products::AT_ONCE),
        };
        let mut wanted = wanted.into_iter();
        gradients.map(|gradient| wanted.next()?.then_some(gradient))
    }
}
