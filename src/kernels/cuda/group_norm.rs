//! Normalization over groups of channels, alone or with the SiLU that follows: one cube per channel of each sample.

use burn::tensor::{DType, FloatDType};
use burn_cubecl::{
    cubecl::{self, prelude::*},
    kernel::into_contiguous,
};

use super::{
    CudaTensor, PLANE, RawTensor, activation::sigmoid, address_type, cube_sum, dims, empty, one_type, planes_for,
    raw_tensor, storage, vector_size,
};
use crate::kernels::formulas::GroupNorm;

/// `x` `[B, C, H, W]` as a contiguous `[B·C, H·W]`.
fn in_channels(x: CudaTensor) -> CudaTensor {
    let [batch, channels, height, width] = dims(&x);
    let x = into_contiguous(x);
    CudaTensor::new_contiguous(x.client, x.device, [batch * channels, height * width].into(), x.handle, x.dtype)
}

/// The normalized values, and `[B·C, 4]` with what the backward pass needs of each channel: its group's mean and reciprocal
/// standard deviation, its weight and its bias.
pub fn forward(norm: GroupNorm, [x, weight, bias]: [CudaTensor; 3]) -> (RawTensor, RawTensor) {
    let shape @ [_, channels, _, _] = dims(&x);
    let (y, x) = (empty(&x, shape, x.dtype), in_channels(x));
    let [rows, places] = dims(&x);
    let moments = empty(&x, [rows, 2], DType::F32);
    let statistics = empty(&x, [rows, 4], DType::F32);
    let (size, address) = (vector_size(&[&x]), address_type(&[&x]));
    let planes = planes_for(places / size);
    let (client, dtypes) = (x.client.clone(), [storage(x.dtype), one_type(&[&weight, &bias])]);
    let (count, dim) = (CubeCount::new_1d(rows as u32), CubeDim::new_1d(planes * PLANE));
    let (from, to) = (x.clone().into_tensor_arg(), moments.clone().into_tensor_arg());
    // SAFETY: there is exactly one cube per row, and its units stop at the end of the row.
    unsafe {
        measure::launch_unchecked(&client, count.clone(), dim, address, size, from, to, planes, dtypes[0]);
        normalize::launch_unchecked(
            &client,
            count,
            dim,
            address,
            size,
            x.into_tensor_arg(),
            moments.into_tensor_arg(),
            into_contiguous(weight).into_tensor_arg(),
            into_contiguous(bias).into_tensor_arg(),
            y.clone().into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            channels,
            channels / norm.groups,
            norm.epsilon as f32,
            norm.silu,
            planes,
            dtypes,
        );
    }
    (raw_tensor(y), raw_tensor(statistics))
}

/// The mean of each row, and its variance.
#[cube(launch_unchecked, address_type = "dynamic")]
fn measure<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    moments: &mut Tensor<f32>,
    #[comptime] planes: u32,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let pieces = x.shape(1) / N::value();
    let start = CUBE_POS * pieces;
    let step = comptime!((planes * PLANE) as usize);
    let n = f32::cast_from(x.shape(1));
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        sum += Vector::cast_from(x[start + i]);
    }
    let mean = cube_sum(sum.vector_sum(), &mut shared, planes) / n;
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        let centred = Vector::<f32, N>::cast_from(x[start + i]) - Vector::new(mean);
        squares += centred * centred;
    }
    let variance = cube_sum(squares.vector_sum(), &mut shared, planes) / n;
    if UNIT_POS == 0 {
        moments[2 * CUBE_POS] = mean;
        moments[2 * CUBE_POS + 1] = variance;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize<T: Float, W: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    moments: &Tensor<f32>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    y: &mut Tensor<Vector<T, N>>,
    statistics: &mut Tensor<f32>,
    channels: usize,
    each: usize,
    epsilon: f32,
    #[comptime] silu: bool,
    #[comptime] planes: u32,
    #[define(T, W)] _dtypes: [StorageType; 2],
) {
    // The rows of a group have equal lengths, so its mean is the mean of their means.
    let (first, n) = (CUBE_POS / each * each, f32::cast_from(each));
    let mut mean = 0.0f32;
    for row in first..first + each {
        mean += moments[2 * row] / n;
    }
    let mut variance = 0.0f32;
    for row in first..first + each {
        let away = moments[2 * row] - mean;
        variance += (moments[2 * row + 1] + away * away) / n;
    }
    let inverse = 1.0 / (variance + epsilon).sqrt();
    let channel = CUBE_POS % channels;
    let (weight, bias) = (f32::cast_from(weight[channel]), f32::cast_from(bias[channel]));
    if UNIT_POS == 0 {
        statistics[4 * CUBE_POS] = mean;
        statistics[4 * CUBE_POS + 1] = inverse;
        statistics[4 * CUBE_POS + 2] = weight;
        statistics[4 * CUBE_POS + 3] = bias;
    }
    let (scale, bias) = (Vector::<f32, N>::new(weight * inverse), Vector::<f32, N>::new(bias));
    let pieces = x.shape(1) / N::value();
    let start = CUBE_POS * pieces;
    for i in range_stepped(UNIT_POS as usize, pieces, comptime!((planes * PLANE) as usize)) {
        let value = (Vector::<f32, N>::cast_from(x[start + i]) - Vector::new(mean)) * scale + bias;
        let value = if silu {
            let (s, _) = sigmoid::<N>(value);
            value * s
        } else {
            value
        };
        y[start + i] = Vector::cast_from(value);
    }
}

/// The `wanted` gradients of `x`, weight and bias, from these three, the gradient of the output and the statistics.
pub fn backward(norm: GroupNorm, inputs: [CudaTensor; 5], wanted: [bool; 3]) -> [Option<RawTensor>; 3] {
    let [x, weight, _, gradient, statistics] = inputs;
    let (shape @ [batch, channels, _, _], of_weights) = (dims(&x), FloatDType::from(weight.dtype));
    let dx = empty(&x, shape, x.dtype);
    let [x, gradient] = [x, gradient].map(in_channels);
    let [rows, places] = dims(&x);
    let sums = empty(&x, [rows, 2], DType::F32);
    let all = [&x, &gradient];
    let (size, address) = (vector_size(&all), address_type(&all));
    let planes = planes_for(places / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    let (count, dim) = (CubeCount::new_1d(rows as u32), CubeDim::new_1d(planes * PLANE));
    // SAFETY: there is exactly one cube per row, and its units stop at the end of the row.
    unsafe {
        add_places::launch_unchecked(
            &client,
            count.clone(),
            dim,
            address,
            size,
            x.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            norm.silu,
            planes,
            dtype,
        );
    }
    let over_samples = |wanted: bool, which| {
        wanted.then(|| {
            let sums = burn::tensor::Tensor::<2>::from_dispatch(raw_tensor(sums.clone())).reshape([batch, channels, 2]);
            sums.narrow(2, which, 1).sum_dim(0).reshape([channels]).cast(of_weights).into_dispatch()
        })
    };
    let (dweight, dbias) = (over_samples(wanted[1], 1), over_samples(wanted[2], 0));
    if !wanted[0] {
        return [None, dweight, dbias];
    }
    // SAFETY: as above.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            count,
            dim,
            address,
            size,
            x.into_tensor_arg(),
            gradient.into_tensor_arg(),
            statistics.into_tensor_arg(),
            sums.into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            channels / norm.groups,
            norm.silu,
            planes,
            dtype,
        );
    }
    [Some(raw_tensor(dx)), dweight, dbias]
}

/// `(n, d)`: the normalized values and the gradient of `n·weight + bias`, at position `i` of this cube's row.
#[cube]
fn with_gradient<T: Float, N: Size>(
    x: Vector<T, N>,
    gradient: Vector<T, N>,
    statistics: &Tensor<f32>,
    #[comptime] silu: bool,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let (mean, inverse) = (Vector::new(statistics[4 * CUBE_POS]), Vector::new(statistics[4 * CUBE_POS + 1]));
    let normed = (Vector::<f32, N>::cast_from(x) - mean) * inverse;
    let g = Vector::<f32, N>::cast_from(gradient);
    if silu {
        let (weight, bias) = (Vector::new(statistics[4 * CUBE_POS + 2]), Vector::new(statistics[4 * CUBE_POS + 3]));
        let y = normed * weight + bias;
        let (s, t) = sigmoid::<N>(y);
        (normed, g * (s + y * s * t))
    } else {
        (normed, g)
    }
}

/// `Σ d` and `Σ d·n` of each row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn add_places<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    statistics: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    #[comptime] silu: bool,
    #[comptime] planes: u32,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let pieces = x.shape(1) / N::value();
    let start = CUBE_POS * pieces;
    let mut level = Vector::<f32, N>::new(0.0);
    let mut tilt = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, comptime!((planes * PLANE) as usize)) {
        let (n, d) = with_gradient::<T, N>(x[start + i], gradient[start + i], statistics, silu);
        level += d;
        tilt += d * n;
    }
    let level = cube_sum(level.vector_sum(), &mut shared, planes);
    let tilt = cube_sum(tilt.vector_sum(), &mut shared, planes);
    if UNIT_POS == 0 {
        sums[2 * CUBE_POS] = level;
        sums[2 * CUBE_POS + 1] = tilt;
    }
}

/// `(weight·d − mean(weight·d) − n·mean(weight·d·n))/deviation`, the means over the group.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    statistics: &Tensor<f32>,
    sums: &Tensor<f32>,
    dx: &mut Tensor<Vector<T, N>>,
    each: usize,
    #[comptime] silu: bool,
    #[comptime] planes: u32,
    #[define(T)] _dtype: StorageType,
) {
    let (first, n) = (CUBE_POS / each * each, f32::cast_from(each * x.shape(1)));
    let mut level = 0.0f32;
    let mut tilt = 0.0f32;
    for row in first..first + each {
        let weight = statistics[4 * row + 2] / n;
        level += weight * sums[2 * row];
        tilt += weight * sums[2 * row + 1];
    }
    let (inverse, weight) = (statistics[4 * CUBE_POS + 1], statistics[4 * CUBE_POS + 2]);
    let pieces = x.shape(1) / N::value();
    let start = CUBE_POS * pieces;
    for i in range_stepped(UNIT_POS as usize, pieces, comptime!((planes * PLANE) as usize)) {
        let (n, d) = with_gradient::<T, N>(x[start + i], gradient[start + i], statistics, silu);
        let value = d * Vector::new(weight) - Vector::new(level) - n * Vector::new(tilt);
        dx[start + i] = Vector::cast_from(value * Vector::new(inverse));
    }
}
