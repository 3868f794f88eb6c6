//! Normalization over the last axis, with learned weights or modulated. All statistics are computed in f32.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply},
};

/// `LayerNorm(x)·(1 + scale) + shift`, where the norm has no weights (AdaLN, Peebles & Xie 2022).
///
/// `x` `[B, L, D]`, `shift` and `scale` `[B, D]` → `[B, L, D]`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, epsilon: f64) -> Tensor<3> {
    apply(LayerNorm { epsilon, base: 1.0 }, [x.into_dispatch(), shift.into_dispatch(), scale.into_dispatch()])
}

/// `(x − mean)/√(variance + ε)·weight + bias` over the last axis (Ba et al. 2016).
///
/// `x` `[…, D]`, `weight` and `bias` `[D]` → `[…, D]`; all inputs on a tape get gradients.
pub fn layer_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<N> {
    let shape = x.dims();
    let width = shape[N - 1];
    let rows = x.reshape([1, shape[..N - 1].iter().product(), width]);
    let [bias, weight] = [bias, weight].map(|t| t.reshape([1, width]).into_dispatch());
    apply::<3, 3>(LayerNorm { epsilon, base: 0.0 }, [rows.into_dispatch(), bias, weight]).reshape(shape)
}

/// `standardized(x)·(base + scale) + shift`.
#[derive(Clone, Debug)]
struct LayerNorm {
    epsilon: f64,
    /// 1 for a modulation, 0 for a weight.
    base: f32,
}

impl Operation<3> for LayerNorm {
    /// `x`, `scale`, and `[B·L, 2]` with the mean of each row and the reciprocal of its standard deviation; if the operation is
    /// composed, a placeholder for these.
    type Saved = [RawTensor; 3];

    fn forward(&self, [x, shift, scale]: [RawTensor; 3]) -> (RawTensor, Self::Saved) {
        let saved = [x.clone(), scale.clone()];
        let (output, statistics) = by_way!([x, shift, scale],
            Cpu(inputs) => cpu::norm::forward(inputs, self.base, self.epsilon),
            Cuda(inputs) => cuda::norm::forward(inputs, self.base, self.epsilon),
            Composed(inputs) => (composed::norm::forward(inputs, self.base, self.epsilon), saved[0].clone()),
        );
        let [x, scale] = saved;
        (output, [x, scale, statistics])
    }

    fn backward(
        self,
        [x, scale, statistics]: Self::Saved,
        gradient: RawTensor,
        wanted: [bool; 3],
    ) -> [Option<RawTensor>; 3] {
        by_way!([x, scale, gradient, statistics],
            Cpu(all) => cpu::norm::backward(all, self.base, wanted),
            Cuda(all) => cuda::norm::backward(all, self.base, wanted),
            Composed([x, scale, g, _]) => composed::norm::backward([x, scale, g], self.base, self.epsilon, wanted),
        )
    }
}
