//! The gated feed-forward unit of a UNet's transformer blocks (GEGLU).

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply},
};

/// `a·gelu(b)` for the halves `a` and `b` of the last axis, with the exact `gelu(b) = b·Φ(b)` (Shazeer 2020; diffusers'
/// `GEGLU`).
///
/// `[…, 2·D]` → `[…, D]`. The backward pass keeps the input and nothing else.
pub fn geglu<const N: usize>(x: Tensor<N>) -> Tensor<N> {
    let mut shape = x.dims();
    let width = shape[N - 1];
    let rows = x.reshape([shape[..N - 1].iter().product(), width]);
    shape[N - 1] = width / 2;
    apply::<1, 2>(Geglu, [rows.into_dispatch()]).reshape(shape)
}

#[derive(Clone, Debug)]
struct Geglu;

impl Operation<1> for Geglu {
    type Saved = RawTensor;

    fn forward(&self, [x]: [RawTensor; 1]) -> (RawTensor, RawTensor) {
        let output = by_way!([x.clone()],
            Cpu([x]) => cpu::geglu::forward(x),
            Cuda([x]) => cuda::geglu::forward(x),
            Composed([x]) => composed::geglu::forward(Tensor::from_dispatch(x)).into_dispatch(),
        );
        (output, x)
    }

    fn backward(self, x: RawTensor, gradient: RawTensor, _: [bool; 1]) -> [Option<RawTensor>; 1] {
        [Some(by_way!([x, gradient],
            Cpu(both) => cpu::geglu::backward(both),
            Cuda(both) => cuda::geglu::backward(both),
            Composed(both) => composed::geglu::backward(both.map(Tensor::from_dispatch)).into_dispatch(),
        ))]
    }
}
