//! Linear layers.

use burn::tensor::{FloatDType, Tensor};

use crate::kernels::{matmul, operation::RawTensor};

/// `x·Wᵀ + b` of `x` `[M, in]`, `W` `[out, in]` and perhaps a bias `[out]`.
pub fn forward(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let y = matmul(x, weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// The `wanted` gradients of `x`, weight and bias, from that of the output, the weight and `x`.
pub fn backward(
    [g, weight, x]: [Tensor<2>; 3],
    [wants_x, wants_weight, wants_bias]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let dtype: FloatDType = g.dtype().into();
    [
        wants_x.then(|| matmul(g.clone(), weight).into_dispatch()),
        wants_weight.then(|| matmul(g.clone().transpose(), x).into_dispatch()),
        // Summed in f32: a bf16 sum over thousands of rows would lose small terms.
        wants_bias.then(|| {
            let sums = g.cast(FloatDType::F32).sum_dim(0).squeeze_dim::<1>(0);
            sums.cast(dtype).into_dispatch()
        }),
    ]
}
