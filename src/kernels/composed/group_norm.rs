//! Normalization over groups of channels, alone or with SiLU.

use burn::tensor::{FloatDType, Tensor, activation};

use crate::kernels::{formulas::GroupNorm, operation::RawTensor};

/// A function that computes SiLU of the output, in f32.
type Silu = fn(Tensor<4>) -> Tensor<4>;

/// The output.
pub fn forward(norm: GroupNorm, [x, weight, bias]: [RawTensor; 3], silu: Silu) -> RawTensor {
    let x = Tensor::from_dispatch(x);
    let dtype: FloatDType = x.dtype().into();
    let (normed, _) = standardize(norm, x);
    let y = affine(normed, weight, bias);
    let y = if norm.silu { silu(y) } else { y };
    y.cast(dtype).into_dispatch()
}

/// The output for a band of rows, given each channel's mean and reciprocal standard deviation, `[B, C, 1, 1]`, f32.
pub fn of_rows([x, weight, bias]: [RawTensor; 3], [mean, inverse]: [Tensor<4>; 2], silu: Option<Silu>) -> RawTensor {
    let x = Tensor::<4>::from_dispatch(x);
    let dtype: FloatDType = x.dtype().into();
    let y = affine((x.cast(FloatDType::F32) - mean) * inverse, weight, bias);
    let y = match silu {
        Some(silu) => silu(y),
        None => y,
    };
    y.cast(dtype).into_dispatch()
}

/// The gradients of `x`, weight and bias, from these and that of the output.
pub fn backward(norm: GroupNorm, [x, weight, bias, g]: [RawTensor; 4]) -> [RawTensor; 3] {
    let x = Tensor::<4>::from_dispatch(x);
    let dtype: FloatDType = x.dtype().into();
    let [of_weight, of_bias] =
        [&weight, &bias].map(|t| FloatDType::from(Tensor::<1>::from_dispatch(t.clone()).dtype()));
    let (normed, inverse) = standardize(norm, x);
    let mut d = Tensor::<4>::from_dispatch(g).cast(FloatDType::F32);
    if norm.silu {
        let y = affine(normed.clone(), weight.clone(), bias);
        let s = activation::sigmoid(y.clone());
        d = d * (s.clone() + y * s.clone() * (-s + 1.0));
    }
    let over_places = |t: Tensor<4>, dtype: FloatDType| {
        let [_, channels, ..] = t.dims();
        t.sum_dim(3).sum_dim(2).sum_dim(0).reshape([channels]).cast(dtype).into_dispatch()
    };
    let dweight = over_places(d.clone() * normed.clone(), of_weight);
    let dbias = over_places(d.clone(), of_bias);
    let d = d * per_channel(weight);
    let dx = (d.clone() - mean(norm, d.clone()) - normed.clone() * mean(norm, d * normed)) * inverse;
    [dx.cast(dtype).into_dispatch(), dweight, dbias]
}

/// `(x − mean)/deviation` and `1/deviation`, in f32.
fn standardize(norm: GroupNorm, x: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let x = x.cast(FloatDType::F32);
    let centred = x.clone() - mean(norm, x);
    let inverse = (mean(norm, centred.clone().square()) + norm.epsilon).sqrt().recip();
    (centred * inverse.clone(), inverse)
}

/// The mean of each group, expanded to its elements. Computed as means of means: one sum over the millions of pixels of a
/// large image would lose digits.
fn mean(norm: GroupNorm, x: Tensor<4>) -> Tensor<4> {
    let shape @ [batch, channels, height, width] = x.dims();
    let each = channels / norm.groups;
    let rows = x.reshape([batch, norm.groups, each * height, width]);
    let means = rows.mean_dim(3).mean_dim(2).reshape([batch, norm.groups, 1, 1]);
    means.expand([batch, norm.groups, each, height * width]).reshape(shape)
}

/// One value per channel, in f32.
fn per_channel(t: RawTensor) -> Tensor<4> {
    let t = Tensor::<1>::from_dispatch(t).cast(FloatDType::F32);
    let channels = t.dims()[0];
    t.reshape([1, channels, 1, 1])
}

fn affine(normed: Tensor<4>, weight: RawTensor, bias: RawTensor) -> Tensor<4> {
    normed * per_channel(weight) + per_channel(bias)
}
