//! Scaled dot-product attention.

use burn::tensor::{FloatDType, Tensor, activation};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    composed::attention::{self as products, AT_ONCE},
    cpu,
    dispatch::Way,
    matmul, on_tape_of,
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};

/// `softmax(q·kᵀ/√K)·v`, where every query attends to every key.
///
/// `q` `[B, N, L, K]`, `k` and `v` `[B, N, S, K]` → `[B, N, L, K]`; the softmax is computed in f32. The scores of no more
/// than a few rows of each head (CPU, f32; 16 bits with cuDNN) or of a few heads (elsewhere) exist at a time, and the backward
/// pass computes them again.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    attention_within(q, k, v, None)
}

/// The same with at most [`Limits::attention_scores`](crate::limits::Limits::attention_scores) scores at a time.
pub fn attention_within(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scores: Option<usize>) -> Tensor<4> {
    assert_one_dtype("attention", &[q.dtype(), k.dtype(), v.dtype()]);
    let scores = scores.unwrap_or(AT_ONCE).min(AT_ONCE);
    apply(Attention { scores }, [q.into_dispatch(), k.into_dispatch(), v.into_dispatch()])
}

/// `softmax(scale·q·kᵀ + bias)·v`, with an additive `bias` that broadcasts to `[B, N, L, S]` (a causal mask, T5's relative
/// positions). For the text encoders: no fused form.
pub fn attention_biased(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    let dtype: FloatDType = q.dtype().into();
    let bias = bias.map(|bias| on_tape_of(bias, &q));
    let scores = matmul(q * scale, k.transpose()).cast(FloatDType::F32);
    let scores = match bias {
        Some(bias) => scores + bias.cast(FloatDType::F32),
        None => scores,
    };
    matmul(activation::softmax(scores, 3).cast(dtype), v)
}

#[derive(Clone, Debug)]
struct Attention {
    /// The maximum number of scores that exist at a time.
    scores: usize,
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    q: RawTensor,
    k: RawTensor,
    v: RawTensor,
    kept: Kept,
}

/// What is kept besides the inputs, depending on how the output was computed.
#[derive(Clone, Debug)]
enum Kept {
    Nothing,
    OnCpu(cpu::attention::Saved),
    #[cfg(feature = "cuda")]
    ByCudnn(cuda::attention::Saved),
}

impl Operation<3> for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: [RawTensor; 3]) -> (RawTensor, Saved) {
        let [q, k, v] = inputs.clone();
        let (output, kept) = match Way::of(inputs) {
            Way::Cpu(inputs) => {
                let (output, saved) = cpu::attention::forward(inputs);
                (output, Kept::OnCpu(saved))
            }
            #[cfg(feature = "cuda")]
            Way::Cuda(inputs) => match cuda::attention::forward(&inputs) {
                Some((output, saved)) => (output, Kept::ByCudnn(saved)),
                None => (products::forward(inputs.map(cuda::raw_tensor), self.scores), Kept::Nothing),
            },
            Way::Composed(inputs) => (products::forward(inputs, self.scores), Kept::Nothing),
        };
        (output, Saved { q, k, v, kept })
    }

    fn backward(self, saved: Saved, gradient: RawTensor, wanted: [bool; 3]) -> [Option<RawTensor>; 3] {
        let Saved { q, k, v, kept } = saved;
        let all = [q, k, v, gradient];
        let gradients = match kept {
            Kept::OnCpu(saved) => cpu::attention::backward(all, saved),
            #[cfg(feature = "cuda")]
            Kept::ByCudnn(saved) => match cuda::attention::backward(cuda::tensors(all.clone()), saved) {
                Some(gradients) => gradients,
                None => products::backward(all, self.scores),
            },
            Kept::Nothing => products::backward(all, self.scores),
        };
        let mut wanted = wanted.into_iter();
        gradients.map(|gradient| wanted.next()?.then_some(gradient))
    }
}
