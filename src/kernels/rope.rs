//! Queries and keys before attention: RMS norm per head, then rotary position embedding.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply, constant},
};

/// Root-mean-square norm over each head with a learned weight, then rotation by position, then transposition to heads before tokens.
///
/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` with each angle twice in a row → `[B, N, L, K]`. Elements
/// `(2i, 2i+1)` of the last axis are the real and imaginary part of one complex number (RoFormer, Su et al. 2021).
/// `x` and `weight` get gradients.
pub fn rms_norm_rope(x: Tensor<4>, weight: Tensor<1>, cos: Tensor<2>, sin: Tensor<2>, epsilon: f64) -> Tensor<4> {
    assert!(x.dims()[3].is_multiple_of(2), "the numbers of a head are rotated in pairs");
    let [cos, sin] = [constant(cos), constant(sin)].map(Tensor::into_dispatch);
    apply(RmsNormRope { cos, sin, epsilon }, [x.into_dispatch(), weight.into_dispatch()])
}

#[derive(Clone, Debug)]
struct RmsNormRope {
    cos: RawTensor,
    sin: RawTensor,
    epsilon: f64,
}

impl Operation<2> for RmsNormRope {
    /// `x`, `weight`.
    type Saved = [RawTensor; 2];

    fn forward(&self, [x, weight]: [RawTensor; 2]) -> (RawTensor, Self::Saved) {
        let saved = [x.clone(), weight.clone()];
        let output = by_way!([x, weight, self.cos.clone(), self.sin.clone()],
            Cpu(all) => cpu::rope::forward(all, self.epsilon),
            Cuda(all) => cuda::rope::forward(all, self.epsilon),
            Composed(all) => composed::rope::forward(all, self.epsilon),
        );
        (output, saved)
    }

    fn backward(self, [x, weight]: Self::Saved, gradient: RawTensor, wanted: [bool; 2]) -> [Option<RawTensor>; 2] {
        let Self { cos, sin, epsilon } = self;
        let [wants_x, wants_weight] = wanted;
        let all = [x, gradient, weight, cos, sin];
        let dweight = wants_weight.then(|| {
            let [x, gradient, weight, cos, sin] = all.clone();
            by_way!([x, gradient, cos, sin],
                Cpu(all) => cpu::rope::weight_gradient(all, epsilon),
                Composed([x, g, cos, sin]) => composed::rope::weight_gradient([x, g, weight, cos, sin], epsilon),
            )
        });
        let dx = wants_x.then(|| {
            by_way!(all,
                Cpu(all) => cpu::rope::input_gradient(all, epsilon),
                Cuda(all) => cuda::rope::input_gradient(all, epsilon),
                Composed(all) => composed::rope::input_gradient(all, epsilon),
            )
        });
        [dx, dweight]
    }
}
