//! Starts a backward pass in the middle of a network.

use burn::tensor::{DType, Tensor};

use super::operation::{Operation, RawTensor, apply};

/// A scalar whose gradient with respect to `y` is `gradient`, an off-tape tensor of the same shape and dtype: its backward pass
/// computes the vector–Jacobian product of a part of a network with the upstream gradient. The scalar itself is 0; nothing is
/// computed.
pub fn vjp_seed<const D: usize>(y: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    apply(VjpSeed(gradient), [y.into_dispatch()])
}

#[derive(Clone, Debug)]
struct VjpSeed<const D: usize>(Tensor<D>);

impl<const D: usize> Operation<1> for VjpSeed<D> {
    type Saved = ();

    fn forward(&self, _: [RawTensor; 1]) -> (RawTensor, ()) {
        (Tensor::<1>::zeros([1], (&self.0.device(), DType::F32)).into_dispatch(), ())
    }

    fn backward(self, (): (), _: RawTensor, _: [bool; 1]) -> [Option<RawTensor>; 1] {
        [Some(self.0.into_dispatch())]
    }
}
