//! The gated residual.

use burn::tensor::{FloatDType, Tensor};

use super::tokens::per_token;
use crate::kernels::operation::RawTensor;

/// `x + gate·y`.
pub fn forward([x, gate, y]: [RawTensor; 3]) -> RawTensor {
    let [x, y]: [Tensor<3>; 2] = [x, y].map(Tensor::from_dispatch);
    (x + y * per_token(Tensor::from_dispatch(gate))).into_dispatch()
}

/// The wanted gradients of `gate` and `y`, from `gate`, `y` and the gradient of the output.
pub fn backward([gate, y, g]: [RawTensor; 3], wants_gate: bool, wants_y: bool) -> [Option<RawTensor>; 2] {
    let [y, g]: [Tensor<3>; 2] = [y, g].map(Tensor::from_dispatch);
    let gate = per_token(Tensor::from_dispatch(gate));
    let dtype: FloatDType = y.dtype().into();
    let dgate = wants_gate.then(|| {
        let product = g.clone().cast(FloatDType::F32) * y.cast(FloatDType::F32);
        product.sum_dim(1).squeeze_dim::<2>(1).cast(dtype).into_dispatch()
    });
    [dgate, wants_y.then(|| (g * gate).into_dispatch())]
}
