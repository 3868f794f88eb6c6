//! Normalization over groups of adjacent channels and all pixels (Wu & He 2018), alone or with the SiLU that follows it in
//! convolutional blocks. Statistics are computed in f32 whatever the input's dtype; the output has the input's dtype.

use burn::tensor::Tensor;

use super::{
    activation, composed, cpu,
    dispatch::by_way,
    formulas::GroupNorm,
    group_statistics::GroupStatistics,
    operation::{Operation, RawTensor, apply},
};

/// `(x − mean)/√(variance + ε)·weight + bias`, with the statistics of each sample and group of channels.
///
/// `x` `[B, C, H, W]`, `weight` and `bias` `[C]` → `[B, C, H, W]`; `groups` divides `C`. All inputs on a tape get gradients.
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, epsilon: f64) -> Tensor<4> {
    apply(GroupNorm { groups, epsilon, silu: false }, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()])
}

/// SiLU of [`group_norm`].
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, epsilon: f64) -> Tensor<4> {
    apply(GroupNorm { groups, epsilon, silu: true }, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()])
}

/// [`group_norm`], or with `silu` [`group_norm_silu`], of a band of rows of images whose `statistics` are known. Not for a tape.
///
/// On the CPU in f32 the result has the same bits as with the whole image.
pub fn group_norm_rows(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    statistics: &GroupStatistics,
    silu: bool,
) -> Tensor<4> {
    let channels = x.dims()[1];
    let norm = GroupNorm { groups: statistics.groups(), epsilon: 0.0, silu };
    let inputs = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    let y = by_way!(inputs,
        Cpu(inputs) => cpu::group_norm::of_rows(norm, inputs, statistics.known()),
        Composed(inputs) => {
            composed::group_norm::of_rows(inputs, statistics.of_channels(channels), silu.then_some(activation::silu))
        },
    );
    Tensor::from_dispatch(y)
}

impl Operation<3> for GroupNorm {
    /// `x`, weight, bias, and the statistics; if the operation is composed, a placeholder for these.
    type Saved = [RawTensor; 4];

    fn forward(&self, inputs: [RawTensor; 3]) -> (RawTensor, Self::Saved) {
        let saved = inputs.clone();
        let (output, statistics) = by_way!(inputs,
            Cpu(inputs) => cpu::group_norm::forward(*self, inputs),
            Cuda(inputs) => cuda::group_norm::forward(*self, inputs),
            Composed(inputs) => (composed::group_norm::forward(*self, inputs, activation::silu), saved[0].clone()),
        );
        let [x, weight, bias] = saved;
        (output, [x, weight, bias, statistics])
    }

    fn backward(self, saved: Self::Saved, gradient: RawTensor, wanted: [bool; 3]) -> [Option<RawTensor>; 3] {
        let [x, weight, bias, statistics] = saved;
        let gradients = by_way!([x, weight, bias, gradient, statistics],
            Cpu(all) => cpu::group_norm::backward(self, all).map(Some),
            Cuda(all) => cuda::group_norm::backward(self, all, wanted),
            Composed([x, weight, bias, g, _]) => composed::group_norm::backward(self, [x, weight, bias, g]).map(Some),
        );
        let mut gradients = gradients.into_iter().zip(wanted);
        std::array::from_fn(|_| gradients.next().and_then(|(gradient, wanted)| gradient.filter(|_| wanted)))
    }
}
