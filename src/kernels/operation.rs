//! Operations with custom backward passes: the bridge between off-tape tensors and Burn's autodiff.
//!
//! Burn's `backend_extension` macro would require every operation once per backend, on backend primitives. Here an operation is a
//! value with a forward and a backward pass on off-tape tensors of any backend, and one function records it on the tape.

use std::fmt::Debug;

use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BackendTensor, DispatchTensor, DispatchTensorKind, Flex,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};
use burn::tensor::{DType, Tensor};

/// A tensor of any rank that is not on a tape.
pub(super) type RawTensor = DispatchTensor;

/// A function of `N` tensors that may need gradients; all constants are fields of the value.
pub(super) trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The output, and what [`backward`](Self::backward) needs.
    fn forward(&self, inputs: [RawTensor; N]) -> (RawTensor, Self::Saved);

    /// The output alone.
    fn forward_only(&self, inputs: [RawTensor; N]) -> RawTensor {
        self.forward(inputs).0
    }

    /// Whether [`backward_onto`](Self::backward_onto) differs from [`backward`](Self::backward).
    const ADDS: bool = false;

    /// The gradients of the inputs that are `wanted`, from the gradient of the output.
    fn backward(self, saved: Self::Saved, gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N];

    /// The same, beside the gradients that the inputs already have from other operations: where adding to one costs less than a pass of
    /// its own, it is taken, and the sum returned. What is left in `before` is added later.
    fn backward_onto(
        self,
        saved: Self::Saved,
        gradient: RawTensor,
        wanted: [bool; N],
        _before: &mut [Option<RawTensor>; N],
    ) -> [Option<RawTensor>; N] {
        self.backward(saved, gradient, wanted)
    }
}

/// Runs `operation`, recording it if an input is on a tape.
pub(super) fn apply<const N: usize, const D: usize>(operation: impl Operation<N>, inputs: [RawTensor; N]) -> Tensor<D> {
    let taped = inputs.iter().find_map(|input| match &input.kind {
        DispatchTensorKind::Autodiff(kind) => Some(kind.as_ref()),
        _ => None,
    });
    let output = match taped {
        None => operation.forward_only(inputs),
        Some(DispatchTensorKind::Flex(_)) => on_tape::<Flex, _, N>(operation, inputs),
        #[cfg(feature = "cuda")]
        Some(DispatchTensorKind::Cuda(_)) => on_tape::<burn::backend::Cuda, _, N>(operation, inputs),
        Some(_) => unreachable!("a tensor of a backend that kiln does not build with"),
    };
    Tensor::from_dispatch(output)
}

/// Detaches a tensor from its tape.
pub(super) fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor.inner() } else { tensor }
}

/// A backend whose tensors can be recognized at run time.
trait Concrete: Backend {
    fn wrap(tensor: BackendTensor<Self>) -> DispatchTensorKind;
    fn unwrap(kind: DispatchTensorKind) -> Option<BackendTensor<Self>>;

    fn wrap_raw(tensor: FloatTensor<Self>) -> RawTensor {
        RawTensor { kind: Self::wrap(BackendTensor::Float(tensor)), checkpointing: None }
    }

    fn unwrap_raw(tensor: RawTensor) -> FloatTensor<Self> {
        Self::unwrap(tensor.kind).expect("an operation stays on the backend of its inputs").float()
    }
}

impl Concrete for Flex {
    fn wrap(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Flex(tensor)
    }

    fn unwrap(kind: DispatchTensorKind) -> Option<BackendTensor<Self>> {
        #[allow(irrefutable_let_patterns)]
        if let DispatchTensorKind::Flex(tensor) = kind { Some(tensor) } else { None }
    }
}

#[cfg(feature = "cuda")]
impl Concrete for burn::backend::Cuda {
    fn wrap(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Cuda(tensor)
    }

    fn unwrap(kind: DispatchTensorKind) -> Option<BackendTensor<Self>> {
        if let DispatchTensorKind::Cuda(tensor) = kind { Some(tensor) } else { None }
    }
}

/// An operation on the tape of backend `B`.
#[derive(Clone, Debug)]
struct Step<O>(O);

impl<B: Concrete, O: Operation<N>, const N: usize> Backward<B, N> for Step<O> {
    type State = O::Saved;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = B::wrap_raw(gradients.consume::<B>(&ops.node));
        let wanted = std::array::from_fn(|i| ops.parents[i].is_some());
        let mut before = std::array::from_fn(|i| {
            let parent = ops.parents[i].as_ref().filter(|_| O::ADDS)?;
            // Gradients are found by tensors, of which only the node matters.
            let mut tensor = Autodiff::<B>::from_inner(B::unwrap_raw(gradient.clone()));
            tensor.node = parent.clone();
            gradients.remove::<B>(&tensor).map(B::wrap_raw)
        });
        let after = self.0.backward_onto(ops.state, gradient, wanted, &mut before);
        for ((parent, before), after) in ops.parents.into_iter().zip(before).zip(after) {
            let Some(parent) = parent else { continue };
            for gradient in [before, after].into_iter().flatten() {
                gradients.register::<B>(parent.id, B::unwrap_raw(gradient));
            }
        }
    }
}

fn on_tape<B: Concrete, O: Operation<N>, const N: usize>(operation: O, inputs: [RawTensor; N]) -> RawTensor {
    let checkpointing = inputs.iter().find_map(|input| input.checkpointing);
    let inputs = inputs.map(|input| match input.kind {
        DispatchTensorKind::Autodiff(kind) => {
            B::unwrap(*kind).expect("the inputs of an operation are on one device").autodiff()
        }
        // An off-tape tensor beside a tracked one is a constant.
        kind => Autodiff::<B>::from_inner(B::unwrap_raw(RawTensor { kind, checkpointing: None })),
    });
    let nodes = std::array::from_fn(|i| inputs[i].node.clone());
    let (output, saved) = operation.forward(inputs.map(|input| B::wrap_raw(input.primitive)));
    let output = B::unwrap_raw(output);
    let step = <Step<O> as Backward<B, N>>::prepare::<NoCheckpointing>(Step(operation), nodes);
    let output = match step.compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(saved, output),
        OpsKind::UnTracked(step) => step.finish(output),
    };
    RawTensor { kind: DispatchTensorKind::Autodiff(Box::new(B::wrap(BackendTensor::Autodiff(output)))), checkpointing }
}

/// Panics, naming the dtypes, unless all are the same.
#[track_caller]
pub(super) fn assert_one_dtype(what: &str, dtypes: &[DType]) {
    assert!(dtypes.windows(2).all(|pair| pair[0] == pair[1]), "{what} of mixed dtypes: {dtypes:?}");
}
