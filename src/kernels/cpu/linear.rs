//! Linear layers.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    gemm::{affine, matmul, transposed},
    loops::column_sums,
    matrix::Matrix,
    simd::update,
    tensor::{contiguous, raw_tensor, tensor, values},
};
use crate::kernels::operation::RawTensor;

/// `x·Wᵀ + b` of `x` `[M, in]`, `W` `[out, in]` and perhaps a bias `[out]`; each of `samples` samples gets the same bits as alone.
pub fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, samples: usize) -> RawTensor {
    let (x, weight, bias) = (contiguous(x), either_way(weight), bias.map(contiguous));
    let (x, weight) = (Matrix::of(&x), Matrix::of(&weight));
    let y = affine(x, weight.t(), bias.as_ref().map(values), samples);
    raw_tensor(tensor(y, [x.rows, weight.rows]))
}

/// The `wanted` gradients of `x`, weight and bias, from that of the output, the weight and `x`.
pub fn backward(
    [g, weight, x]: [FlexTensor; 3],
    [wants_x, wants_weight, wants_bias]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let (g, weight, x) = (contiguous(g), either_way(weight), contiguous(x));
    let [g, weight, x] = [&g, &weight, &x].map(Matrix::of);
    let matrix = |data, rows, columns| raw_tensor(tensor(data, [rows, columns]));
    [
        wants_x.then(|| matrix(affine(g, weight, None, 1), g.rows, weight.columns)),
        wants_weight.then(|| matrix(matmul(g.t(), x, 1.0), g.columns, x.columns)),
        wants_bias.then(|| raw_tensor(tensor(sums_of_columns(g), [g.columns]))),
    ]
}

/// The weight `[out, in]` in column-major order.
pub fn prepack_weight(weight: FlexTensor) -> Tensor<2> {
    let weight = contiguous(weight);
    let weight = Matrix::of(&weight);
    let turned = tensor(transposed(weight), [weight.columns, weight.rows]);
    Tensor::<2>::from_dispatch(raw_tensor(turned)).transpose()
}

/// The weight in row-major or column-major order; copied only if it is in neither.
fn either_way(weight: FlexTensor) -> FlexTensor {
    let strides = weight.layout().strides();
    if strides.contains(&1) && strides.iter().all(|&stride| stride > 0) { weight } else { weight.to_contiguous() }
}

fn sums_of_columns(matrix: Matrix) -> Vec<f32> {
    column_sums(
        matrix.rows,
        matrix.columns,
        #[inline(always)]
        |row, sums| {
            update(
                sums,
                [&matrix.data[row * matrix.columns..][..matrix.columns]],
                #[inline(always)]
                |sum, [value]| sum + value,
            )
        },
    )
}
