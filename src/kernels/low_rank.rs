//! LoRA adapters applied to the outputs of their layers.

use burn::tensor::Tensor;

use super::{
    activation::{Activatable, Activated},
    composed, cpu,
    dispatch::by_way,
    formulas::{Activation, Factors},
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};
#[cfg(feature = "cuda")]
use super::{cuda, dispatch::on_gpu};

/// `y + scale·(x·Aᵀ)·Bᵀ`: a LoRA adapter applied to the output `y` of its layer.
///
/// The adapter acts on the activation, never on the weight: a dense `W + s·B·A` per layer would have to be kept for the
/// backward pass. `y` `[M, out]`, `x` `[M, in]`, `a` `[rank, in]`, `b` `[out, rank]`, in f32 whatever the dtype of `x`.
pub fn low_rank(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64) -> Tensor<2> {
    apply(LowRank { scale }, raw_tensors(y, x, a, b))
}

/// The activation of [`low_rank`], in a `shape` whose last axis is `out` and the others together `M`.
pub fn low_rank_activated<const D: usize>(
    y: Tensor<2>,
    x: Tensor<2>,
    factors: Factors<'_>,
    kind: Activation,
    shape: [usize; D],
) -> Tensor<D> {
    let inputs = raw_tensors(y, x, factors.a.clone(), factors.b.clone());
    apply(Activated { operation: LowRank { scale: factors.scale }, kind, shape }, inputs)
}

fn raw_tensors(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> [RawTensor; 4] {
    assert_one_dtype("a LoRA layer", &[y.dtype(), x.dtype()]);
    [y.into_dispatch(), x.into_dispatch(), a.into_dispatch(), b.into_dispatch()]
}

/// `y + Σ scale·(x·Aᵀ)·Bᵀ` with separate factors for each sample, of any ranks and any number. `y` `[M, out]`, `x` `[M, in]`,
/// with equally many rows for each of `samples` samples. On the CPU in f32 each sample gets the same bits as alone. Not for a
/// tape.
pub fn low_rank_by_sample(y: Tensor<2>, x: Tensor<2>, samples: usize, each: &[Vec<Factors<'_>>]) -> Tensor<2> {
    assert_one_dtype("a LoRA layer", &[y.dtype(), x.dtype()]);
    by_way!([y.into_dispatch(), x.into_dispatch()],
        Cpu(both) => Tensor::from_dispatch(cpu::low_rank::by_sample(both, samples, each)),
        Composed(both) => {
            let [y, x] = both.map(Tensor::from_dispatch);
            match each {
                [factors] => {
                    factors.iter().fold(y, |y, f| low_rank(y, x.clone(), f.a.clone(), f.b.clone(), f.scale))
                }
                _ => composed::low_rank::by_sample([y, x], samples, each),
            }
        },
    )
}

#[derive(Clone, Debug)]
struct LowRank {
    scale: f64,
}

impl Operation<4> for LowRank {
    /// `x`, `x·Aᵀ`, `A`, `B`. On a GPU `A` and `B`, and if composed `A` and `scale·B`, have the dtype of `x`.
    type Saved = [RawTensor; 4];

    fn forward(&self, inputs: [RawTensor; 4]) -> (RawTensor, Self::Saved) {
        by_way!(inputs,
            Cpu(inputs) => cpu::low_rank::forward(inputs, self.scale),
            Cuda(inputs) => cuda::linear::low_rank(inputs, self.scale),
            Composed(inputs) => composed::low_rank::forward(inputs.map(Tensor::from_dispatch), self.scale),
        )
    }

    fn backward(self, [x, u, a, b]: Self::Saved, gradient: RawTensor, wanted: [bool; 4]) -> [Option<RawTensor>; 4] {
        let [wants_y, wanted @ ..] = wanted;
        let dy = wants_y.then(|| gradient.clone());
        let [dx, da, db] = by_way!([gradient, x, u, a, b],
            Cpu(all) => cpu::low_rank::backward(all, self.scale, wanted),
            Cuda(all) => cuda::linear::low_rank_gradients(all, self.scale, wanted),
            Composed(all) => composed::low_rank::backward(all.map(Tensor::from_dispatch), self.scale, wanted),
        );
        [dy, dx, da, db]
    }
}

impl Activatable<4> for LowRank {
    #[cfg(feature = "cuda")]
    fn forward_activated(
        &self,
        kind: Activation,
        inputs: [RawTensor; 4],
        kept: bool,
    ) -> (RawTensor, Option<RawTensor>, Self::Saved) {
        match on_gpu(inputs) {
            Ok(inputs) => cuda::linear::low_rank_activated(kind, inputs, self.scale, kept),
            Err(inputs) => self.forward_then_activated(kind, inputs),
        }
    }
}
