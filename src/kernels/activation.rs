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
    activated(x, Activation::GeluTanh)
}

/// `silu(x) = x·σ(x)` with the logistic function σ, also called swish.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activated(x, Activation::Silu)
}

/// An activation of each element.
pub fn activated<const D: usize>(x: Tensor<D>, kind: Activation) -> Tensor<D> {
    apply(Activate::<D>(kind), [x.into_dispatch()])
}

/// An activation of a tensor with `D` axes.
#[derive(Clone, Copy, Debug)]
struct Activate<const D: usize>(Activation);

impl<const D: usize> Operation<1> for Activate<D> {
    type Saved = RawTensor;

    fn forward(&self, [x]: [RawTensor; 1]) -> (RawTensor, RawTensor) {
        (forward::<D>(self.0, x.clone()), x)
    }

    fn backward(self, x: RawTensor, gradient: RawTensor, _: [bool; 1]) -> [Option<RawTensor>; 1] {
        [Some(backward::<D>(self.0, [x, gradient]))]
    }
}

fn forward<const D: usize>(kind: Activation, x: RawTensor) -> RawTensor {
    by_way!([x],
        Cpu([x]) => cpu::activation::forward::<D>(kind, x),
        Cuda([x]) => cuda::activation::forward(kind, x),
        Composed([x]) => composed::activation::forward::<D>(kind, Tensor::from_dispatch(x)).into_dispatch(),
    )
}

fn backward<const D: usize>(kind: Activation, x_and_gradient: [RawTensor; 2]) -> RawTensor {
    by_way!(x_and_gradient,
        Cpu(both) => cpu::activation::backward::<D>(kind, both),
        Cuda(both) => cuda::activation::backward(kind, both),
        Composed(both) => {
            let [x, g] = both.map(Tensor::<D>::from_dispatch);
            composed::activation::backward(kind, x, g).into_dispatch()
        },
    )
}

/// An operation with a matrix as its result, which an activation can follow in the same launch.
pub(super) trait Activatable<const N: usize>: Operation<N> {
    /// The activated result; the result itself if it is to be `kept` or costs nothing; and what the backward pass of the operation needs.
    fn forward_activated(
        &self,
        kind: Activation,
        inputs: [RawTensor; N],
        _kept: bool,
    ) -> (RawTensor, Option<RawTensor>, Self::Saved) {
        self.forward_then_activated(kind, inputs)
    }

    /// The same in two launches.
    fn forward_then_activated(
        &self,
        kind: Activation,
        inputs: [RawTensor; N],
    ) -> (RawTensor, Option<RawTensor>, Self::Saved) {
        let (result, saved) = self.forward(inputs);
        (forward::<2>(kind, result.clone()), Some(result), saved)
    }
}

/// An operation and the activation of its result, in a shape with as many elements: the gradient may then be a part of a tensor with
/// `D` axes, which only copying would make a matrix of.
#[derive(Clone, Debug)]
pub(super) struct Activated<O, const D: usize> {
    pub operation: O,
    pub kind: Activation,
    pub shape: [usize; D],
}

impl<O, const D: usize> Activated<O, D> {
    fn shaped(&self, matrix: RawTensor) -> RawTensor {
        Tensor::<2>::from_dispatch(matrix).reshape(self.shape).into_dispatch()
    }

    /// The gradient of the operation's result `[M, N]`, from the result and the gradient of the activation.
    fn result_gradient(&self, result: RawTensor, gradient: RawTensor) -> RawTensor {
        let gradient = backward::<D>(self.kind, [self.shaped(result), gradient]);
        Tensor::<D>::from_dispatch(gradient).flatten::<2>(0, D - 2).into_dispatch()
    }
}

impl<O: Activatable<N>, const N: usize, const D: usize> Operation<N> for Activated<O, D> {
    /// Those of the operation, and its result.
    type Saved = (O::Saved, RawTensor);

    fn forward(&self, inputs: [RawTensor; N]) -> (RawTensor, Self::Saved) {
        let (output, result, saved) = self.operation.forward_activated(self.kind, inputs, true);
        (self.shaped(output), (saved, result.expect("it is kept")))
    }

    fn forward_only(&self, inputs: [RawTensor; N]) -> RawTensor {
        self.shaped(self.operation.forward_activated(self.kind, inputs, false).0)
    }

    const ADDS: bool = O::ADDS;

    fn backward(self, (saved, result): Self::Saved, gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N] {
        let gradient = self.result_gradient(result, gradient);
        self.operation.backward(saved, gradient, wanted)
    }

    fn backward_onto(
        self,
        (saved, result): Self::Saved,
        gradient: RawTensor,
        wanted: [bool; N],
        before: &mut [Option<RawTensor>; N],
    ) -> [Option<RawTensor>; N] {
        let gradient = self.result_gradient(result, gradient);
        self.operation.backward_onto(saved, gradient, wanted, before)
    }
}
