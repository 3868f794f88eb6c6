//! RMS norm per head and rotary position embedding.

use burn::tensor::{FloatDType, Tensor};

use crate::kernels::operation::RawTensor;

/// `x` in f32, its reciprocal root mean square, and the constants as `[1, L, 1, K]` or `[1, 1, 1, K]`.
fn prepared(x: Tensor<4>, [weight, cos, sin]: [RawTensor; 3], epsilon: f64) -> (Tensor<4>, Tensor<4>, [Tensor<4>; 3]) {
    let [_, tokens, _, width] = x.dims();
    let x = x.cast(FloatDType::F32);
    let inverse = (x.clone().square().mean_dim(3) + epsilon).sqrt().recip();
    let weight = Tensor::<1>::from_dispatch(weight).reshape([1, 1, 1, width]);
    let [cos, sin] =
        [cos, sin].map(|t| Tensor::<2>::from_dispatch(t).reshape([1, tokens, 1, width]).cast(FloatDType::F32));
    (x, inverse, [weight, cos, sin])
}

/// `(-im, re)` of each pair `(re, im)`.
fn quarter_turn(x: Tensor<4>) -> Tensor<4> {
    let [batch, tokens, heads, width] = x.dims();
    let pairs = x.reshape([batch, tokens, heads, width / 2, 2]);
    let (re, im) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
    Tensor::cat(vec![im.neg(), re], 4).reshape([batch, tokens, heads, width])
}

/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` → `[B, N, L, K]`.
pub fn forward([x, weight, cos, sin]: [RawTensor; 4], epsilon: f64) -> RawTensor {
    let x = Tensor::<4>::from_dispatch(x);
    let dtype: FloatDType = x.dtype().into();
    let (x, inverse, [weight, cos, sin]) = prepared(x, [weight, cos, sin], epsilon);
    let normed = ((x * inverse).cast(dtype) * weight).cast(FloatDType::F32);
    let turned = quarter_turn(normed.clone());
    (normed * cos + turned * sin).cast(dtype).swap_dims(1, 2).into_dispatch()
}

/// The gradient of `x`, from `x`, the gradient `[B, N, L, K]` of the output, `weight`, `cos` and `sin`.
pub fn input_gradient([x, g, weight, cos, sin]: [RawTensor; 5], epsilon: f64) -> RawTensor {
    let [x, g]: [Tensor<4>; 2] = [x, g].map(Tensor::from_dispatch);
    let dtype: FloatDType = x.dtype().into();
    let (x, inverse, [weight, cos, sin]) = prepared(x, [weight, cos, sin], epsilon);
    let g = g.swap_dims(1, 2).cast(FloatDType::F32);
    // The transpose of a quarter turn is the opposite quarter turn.
    let d = g.clone() * cos - quarter_turn(g * sin);
    let d = d * weight.cast(FloatDType::F32);
    let slope = (d.clone() * x.clone()).mean_dim(3) * inverse.clone().square();
    ((d - x * slope) * inverse).cast(dtype).into_dispatch()
}

/// The sum over all rows of the gradient rotated back, times the normalized input; in the dtype of the weight.
pub fn weight_gradient([x, g, weight, cos, sin]: [RawTensor; 5], epsilon: f64) -> RawTensor {
    let [x, g]: [Tensor<4>; 2] = [x, g].map(Tensor::from_dispatch);
    let width = x.dims()[3];
    let dtype: FloatDType = Tensor::<1>::from_dispatch(weight.clone()).dtype().into();
    let (x, inverse, [_, cos, sin]) = prepared(x, [weight, cos, sin], epsilon);
    let g = g.swap_dims(1, 2).cast(FloatDType::F32);
    let d = g.clone() * cos - quarter_turn(g * sin);
    let sums = (d * x * inverse).reshape([-1, width as i32]).sum_dim(0);
    sums.reshape([width]).cast(dtype).into_dispatch()
}
