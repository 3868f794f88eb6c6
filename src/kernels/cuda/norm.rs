//! Normalization over the last axis: one cube per row.

use burn::tensor::{DType, FloatDType};
use burn_cubecl::cubecl::{self, prelude::*};

use super::{
    CudaTensor, PLANE, RawTensor, TOKENS, UNITS, address_type, cube_sum, dims, empty, in_rows, one_type, planes_for,
    raw_tensor, storage, sum_chunks, vector_size,
};

/// `standardized(x)·(base + scale) + shift`, and `[B·L, 2]` with the mean of each row and the reciprocal of its standard deviation.
pub fn forward(inputs: [CudaTensor; 3], base: f32, epsilon: f64) -> (RawTensor, RawTensor) {
    let [x, shift, scale] = inputs.map(in_rows);
    let shape @ [batch, tokens, width] = dims(&x);
    let y = empty(&x, shape, x.dtype);
    let statistics = empty(&x, [batch * tokens, 2], DType::F32);
    let all = [&x, &shift, &scale, &y];
    let (size, address) = (vector_size(&all), address_type(&all));
    let planes = planes_for(width / size);
    let (client, dtypes) = (x.client.clone(), [storage(x.dtype), one_type(&[&shift, &scale])]);
    // SAFETY: there is exactly one cube per row, and its units stop at the width of the row.
    unsafe {
        normalize::launch_unchecked(
            &client,
            CubeCount::new_1d((batch * tokens) as u32),
            CubeDim::new_1d(planes * PLANE),
            address,
            size,
            x.into_tensor_arg(),
            shift.into_tensor_arg(),
            scale.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            base,
            epsilon as f32,
            planes,
            dtypes,
        );
    }
    (raw_tensor(y), raw_tensor(statistics))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize<T: Float, W: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    shift: &Tensor<Vector<W, N>>,
    scale: &Tensor<Vector<W, N>>,
    y: &mut Tensor<Vector<T, N>>,
    statistics: &mut Tensor<f32>,
    base: f32,
    epsilon: f32,
    #[comptime] planes: u32,
    #[define(T, W)] _dtypes: [StorageType; 2],
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let width = x.shape(2);
    let pieces = width / N::value();
    let (batch, token) = (CUBE_POS / x.shape(1), CUBE_POS % x.shape(1));
    let row = (batch * x.stride(0) + token * x.stride(1)) / N::value();
    let step = comptime!((planes * PLANE) as usize);

    let mut total = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        total += Vector::cast_from(x[row + i]);
    }
    let mean = cube_sum(total.vector_sum(), &mut shared, planes) / f32::cast_from(width);

    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        let centred = Vector::<f32, N>::cast_from(x[row + i]) - Vector::new(mean);
        squares += centred * centred;
    }
    let variance = cube_sum(squares.vector_sum(), &mut shared, planes) / f32::cast_from(width);
    let inverse = 1.0 / (variance + epsilon).sqrt();
    if UNIT_POS == 0 {
        statistics[2 * CUBE_POS] = mean;
        statistics[2 * CUBE_POS + 1] = inverse;
    }

    let shift_row = batch * shift.stride(0) / N::value();
    let scale_row = batch * scale.stride(0) / N::value();
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        let normed = (Vector::<f32, N>::cast_from(x[row + i]) - Vector::new(mean)) * Vector::new(inverse);
        let scale = Vector::<f32, N>::cast_from(scale[scale_row + i]) + Vector::new(base);
        let shift = Vector::<f32, N>::cast_from(shift[shift_row + i]);
        y[CUBE_POS * pieces + i] = Vector::cast_from(normed * scale + shift);
    }
}

/// The `wanted` gradients of `x`, `shift` and `scale`, from `x`, `scale`, the gradient of the output and the statistics of
/// [`forward`].
pub fn backward(inputs: [CudaTensor; 4], base: f32, wanted: [bool; 3]) -> [Option<RawTensor>; 3] {
    let [x, scale, gradient, statistics] = inputs.map(in_rows);
    let [wants_x, wants_shift, wants_scale] = wanted;
    let (width, dtype) = (dims::<3>(&x)[2], FloatDType::from(scale.dtype));
    let sums = (wants_shift || wants_scale).then(|| sums(&x, &gradient, &statistics));
    let half = |wanted: bool, start| {
        let sums = sums.clone().filter(|_| wanted)?;
        Some(sums.narrow(1, start, width).cast(dtype).into_dispatch())
    };
    let (dshift, dscale) = (half(wants_shift, 0), half(wants_scale, width));
    [wants_x.then(|| of_rows(x, scale, gradient, statistics, base)), dshift, dscale]
}

/// The gradient of `x`.
fn of_rows(x: CudaTensor, scale: CudaTensor, gradient: CudaTensor, statistics: CudaTensor, base: f32) -> RawTensor {
    let shape @ [batch, tokens, width] = dims(&x);
    let dx = empty(&x, shape, x.dtype);
    let all = [&x, &scale, &gradient, &dx];
    let (size, address) = (vector_size(&all), address_type(&all));
    let planes = planes_for(width / size);
    let (client, dtypes) = (x.client.clone(), [one_type(&[&x, &gradient]), storage(scale.dtype)]);
    // SAFETY: there is exactly one cube per row, and its units stop at the width of the row.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            CubeCount::new_1d((batch * tokens) as u32),
            CubeDim::new_1d(planes * PLANE),
            address,
            size,
            x.into_tensor_arg(),
            scale.into_tensor_arg(),
            gradient.into_tensor_arg(),
            statistics.into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            base,
            planes,
            dtypes,
        );
    }
    raw_tensor(dx)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<T: Float, W: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    scale: &Tensor<Vector<W, N>>,
    gradient: &Tensor<Vector<T, N>>,
    statistics: &Tensor<f32>,
    dx: &mut Tensor<Vector<T, N>>,
    base: f32,
    #[comptime] planes: u32,
    #[define(T, W)] _dtypes: [StorageType; 2],
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let width = x.shape(2);
    let pieces = width / N::value();
    let (batch, token) = (CUBE_POS / x.shape(1), CUBE_POS % x.shape(1));
    let x_row = (batch * x.stride(0) + token * x.stride(1)) / N::value();
    let g_row = (batch * gradient.stride(0) + token * gradient.stride(1)) / N::value();
    let scale_row = batch * scale.stride(0) / N::value();
    let (mean, inverse) = (statistics[2 * CUBE_POS], statistics[2 * CUBE_POS + 1]);
    let step = comptime!((planes * PLANE) as usize);

    let mut level = Vector::<f32, N>::new(0.0);
    let mut slope = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        let scale = Vector::<f32, N>::cast_from(scale[scale_row + i]) + Vector::new(base);
        let d = Vector::<f32, N>::cast_from(gradient[g_row + i]) * scale;
        level += d;
        slope += d * (Vector::<f32, N>::cast_from(x[x_row + i]) - Vector::new(mean));
    }
    let n = f32::cast_from(width);
    let level = cube_sum(level.vector_sum(), &mut shared, planes) / n;
    let slope = cube_sum(slope.vector_sum(), &mut shared, planes) * inverse * inverse / n;

    for i in range_stepped(UNIT_POS as usize, pieces, step) {
        let scale = Vector::<f32, N>::cast_from(scale[scale_row + i]) + Vector::new(base);
        let d = Vector::<f32, N>::cast_from(gradient[g_row + i]) * scale;
        let centred = Vector::<f32, N>::cast_from(x[x_row + i]) - Vector::new(mean);
        let result = (d - Vector::new(level) - centred * Vector::new(slope)) * Vector::new(inverse);
        dx[CUBE_POS * pieces + i] = Vector::cast_from(result);
    }
}

/// The gradients of `shift` and `scale`, side by side in f32: `[B, 2·D]`.
fn sums(x: &CudaTensor, gradient: &CudaTensor, statistics: &CudaTensor) -> burn::tensor::Tensor<2> {
    let [batch, tokens, width] = dims(x);
    let chunks = tokens.div_ceil(TOKENS);
    let partial = empty(x, [batch, chunks, 2 * width], DType::F32);
    let all = [x, gradient, &partial];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (client, dtype) = (x.client.clone(), one_type(&[x, gradient]));
    // SAFETY: units past the width return at once, and the last chunk of a sample stops at its last row.
    unsafe {
        add_rows::launch_unchecked(
            &client,
            CubeCount::new_3d((width / size).div_ceil(UNITS as usize) as u32, chunks as u32, batch as u32),
            CubeDim::new_1d(UNITS),
            address,
            size,
            x.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            dtype,
        );
    }
    sum_chunks(partial)
}

/// For each chunk of rows, `Σ g` and `Σ g·normed`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn add_rows<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    statistics: &Tensor<f32>,
    partial: &mut Tensor<Vector<f32, N>>,
    #[define(T)] _dtype: StorageType,
) {
    let (tokens, pieces) = (x.shape(1), x.shape(2) / N::value());
    let column = (CUBE_POS_X * UNITS + UNIT_POS) as usize;
    let (chunk, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    if column >= pieces {
        terminate!();
    }
    let mut shift = Vector::<f32, N>::new(0.0);
    let mut scale = Vector::<f32, N>::new(0.0);
    for token in chunk * TOKENS..min((chunk + 1) * TOKENS, tokens) {
        let row = 2 * (batch * tokens + token);
        let g = Vector::<f32, N>::cast_from(
            gradient[(batch * gradient.stride(0) + token * gradient.stride(1)) / N::value() + column],
        );
        let x = Vector::<f32, N>::cast_from(x[(batch * x.stride(0) + token * x.stride(1)) / N::value() + column]);
        shift += g;
        scale += g * (x - Vector::new(statistics[row])) * Vector::new(statistics[row + 1]);
    }
    let start = (batch * partial.shape(1) + chunk) * 2 * pieces + column;
    partial[start] = shift;
    partial[start + pieces] = scale;
}
