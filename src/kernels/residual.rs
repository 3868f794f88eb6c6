//! The gated residual of a modulated transformer block.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply},
};

/// `x + gate·y`, the gated residual of a modulated block.
///
/// `x` and `y` `[B, L, D]`, `gate` `[B, D]` → `[B, L, D]`.
pub fn gated_add(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    apply(GatedAdd, [x.into_dispatch(), gate.into_dispatch(), y.into_dispatch()])
}

#[derive(Clone, Debug)]
struct GatedAdd;

impl Operation<3> for GatedAdd {
    /// `gate`, `y`.
    type Saved = [RawTensor; 2];

    fn forward(&self, [x, gate, y]: [RawTensor; 3]) -> (RawTensor, Self::Saved) {
        let saved = [gate.clone(), y.clone()];
        let output = by_way!([x, gate, y],
            Cpu(all) => cpu::residual::forward(all),
            Cuda(all) => cuda::residual::forward(all),
            Composed(all) => composed::residual::forward(all),
        );
        (output, saved)
    }

    fn backward(self, [gate, y]: Self::Saved, gradient: RawTensor, wanted: [bool; 3]) -> [Option<RawTensor>; 3] {
        let [wants_x, wants_gate, wants_y] = wanted;
        let dx = wants_x.then(|| gradient.clone());
        let [dgate, dy] = by_way!([gate, y, gradient],
            Cpu(all) => cpu::residual::backward(all, wants_gate, wants_y),
            Cuda(all) => cuda::residual::backward(all, wants_gate, wants_y),
            Composed(all) => composed::residual::backward(all, wants_gate, wants_y),
        );
        [dx, dgate, dy]
    }
}
