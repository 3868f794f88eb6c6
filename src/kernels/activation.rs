//! Activations. Their backward passes keep the input and nothing else.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    formulas::Activation,
    operation::{Operation, RawTensor, apply},
};

/// `gelu(x)` in its tanh form: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (FLUX's and T5's "gelu_new").
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(Activate::<D>(Activation::GeluTanh), [x.into_dispatch()])
}

/// `silu(x) = x·σ(x)` with the logistic function σ, also called swish.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(Activate::<D>(Activation::Silu), [x.into_dispatch()])
}

/// An activation of a tensor with `D` axes.
#[derive(Clone, Copy, Debug)]
struct Activate<const D: usize>(Activation);

impl<const D: usize> Operation<1> for Activate<D> {
    type Saved = RawTensor;

    fn forward(&self, [x]: [RawTensor; 1]) -> (RawTensor, RawTensor) {
        let output = by_way!([x.clone()],
            Cpu([x]) => cpu::activation::forward::<D>(self.0, x),
            Cuda([x]) => cuda::activation::forward(self.0, x),
            Composed([x]) => composed::activation::forward::<D>(self.0, Tensor::from_dispatch(x)).into_dispatch(),
        );
        (output, x)
    }

    fn backward(self, x: RawTensor, gradient: RawTensor, _: [bool; 1]) -> [Option<RawTensor>; 1] {
        [Some(by_way!([x, gradient],
            Cpu(both) => cpu::activation::backward::<D>(self.0, both),
            Cuda(both) => cuda::activation::backward(self.0, both),
            Composed(both) => {
                let [x, g] = both.map(Tensor::<D>::from_dispatch);
                composed::activation::backward(self.0, x, g).into_dispatch()
            },
        ))]
    }
}
