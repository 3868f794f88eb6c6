//! RMS norm per head and rotary position embedding: one plane per head of each token.

use burn_cubecl::{
    cubecl::{self, prelude::*},
    kernel::into_contiguous,
};

use super::{
    CudaTensor, PLANE, RawTensor, UNITS, address_type, dims, empty, in_rows, one_type, raw_tensor, storage, vector_size,
};

/// Planes per cube, each with its own row.
const ROWS: u32 = UNITS / PLANE;

/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` → `[B, N, L, K]`.
pub fn forward(inputs: [CudaTensor; 4], epsilon: f64) -> RawTensor {
    let [x, weight, cos, sin] = in_pairs(inputs.map(in_rows));
    let [batch, tokens, heads, width] = dims(&x);
    let y = empty(&x, [batch, heads, tokens, width], x.dtype);
    let (rows, size, address, dtypes) = launched(&x, [&weight, &cos, &sin, &y]);
    let client = x.client.clone();
    // SAFETY: a plane past the rows returns at once, and the units of the others stop at the width of their row.
    unsafe {
        rotate::launch_unchecked(
            &client,
            rows,
            CubeDim::new_1d(UNITS),
            address,
            size,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            epsilon as f32,
            dtypes,
        );
    }
    raw_tensor(y)
}

/// The gradient of `x`, from `x`, the gradient `[B, N, L, K]` of the output, `weight`, `cos` and `sin`.
pub fn input_gradient(inputs: [CudaTensor; 5], epsilon: f64) -> RawTensor {
    let [x, gradient, weight, cos, sin] = in_pairs(inputs.map(in_rows));
    let dx = empty(&x, dims::<4>(&x), x.dtype);
    let (rows, size, address, dtypes) = launched(&x, [&weight, &cos, &sin, &gradient]);
    let client = x.client.clone();
    // SAFETY: a plane past the rows returns at once, and the units of the others stop at the width of their row.
    unsafe {
        rotate_back::launch_unchecked(
            &client,
            rows,
            CubeDim::new_1d(UNITS),
            address,
            size,
            x.into_tensor_arg(),
            gradient.into_tensor_arg(),
            weight.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            epsilon as f32,
            dtypes,
        );
    }
    raw_tensor(dx)
}

/// The tensors, such that a unit can read the two elements of a pair at once.
fn in_pairs<const N: usize>(tensors: [CudaTensor; N]) -> [CudaTensor; N] {
    match vector_size(&tensors.each_ref()) {
        1 => tensors.map(into_contiguous),
        _ => tensors,
    }
}

/// The cubes for all rows of `x`, the vector width of both kernels, and their dtypes.
fn launched(
    x: &CudaTensor,
    [weight, cos, sin, like]: [&CudaTensor; 4],
) -> (CubeCount, VectorSize, AddressType, [StorageType; 3]) {
    let [batch, tokens, heads, _] = dims(x);
    let all = [x, weight, cos, sin, like];
    let rows = CubeCount::new_1d((batch * tokens * heads).div_ceil(ROWS as usize) as u32);
    (rows, vector_size(&all), address_type(&all), [one_type(&[x, like]), storage(weight.dtype), one_type(&[cos, sin])])
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate<T: Float, W: Float, A: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    weight: &Tensor<Vector<W, N>>,
    cos: &Tensor<Vector<A, N>>,
    sin: &Tensor<Vector<A, N>>,
    y: &mut Tensor<Vector<T, N>>,
    epsilon: f32,
    #[define(T, W, A)] _dtypes: [StorageType; 3],
) {
    let (tokens, heads, width) = (x.shape(1), x.shape(2), x.shape(3));
    let pieces = width / N::value();
    let row = CUBE_POS * ROWS as usize + PLANE_POS as usize;
    if row >= x.shape(0) * tokens * heads {
        terminate!();
    }
    // In the order of the output.
    let (batch, head, token) = (row / (tokens * heads), row / tokens % heads, row % tokens);
    let from = (batch * x.stride(0) + token * x.stride(1) + head * x.stride(2)) / N::value();
    let (cos_row, sin_row) = (token * cos.stride(0) / N::value(), token * sin.stride(0) / N::value());

    let inverse = inverse_root::<T, N>(x, from, pieces, width, epsilon);
    for i in range_stepped(UNIT_POS_PLANE as usize, pieces, PLANE as usize) {
        let normed = Vector::<f32, N>::cast_from(x[from + i]) * Vector::new(inverse);
        let normed = normed * Vector::cast_from(weight[i]);
        let straight = normed * Vector::cast_from(cos[cos_row + i]);
        let turned = quarter_turn::<N>(normed) * Vector::cast_from(sin[sin_row + i]);
        y[row * pieces + i] = Vector::cast_from(straight + turned);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate_back<T: Float, W: Float, A: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    weight: &Tensor<Vector<W, N>>,
    cos: &Tensor<Vector<A, N>>,
    sin: &Tensor<Vector<A, N>>,
    dx: &mut Tensor<Vector<T, N>>,
    epsilon: f32,
    #[define(T, W, A)] _dtypes: [StorageType; 3],
) {
    let (tokens, heads, width) = (x.shape(1), x.shape(2), x.shape(3));
    let pieces = width / N::value();
    let row = CUBE_POS * ROWS as usize + PLANE_POS as usize;
    if row >= x.shape(0) * tokens * heads {
        terminate!();
    }
    // In the order of `x`.
    let (batch, token, head) = (row / (tokens * heads), row / heads % tokens, row % heads);
    let from = (batch * x.stride(0) + token * x.stride(1) + head * x.stride(2)) / N::value();
    let g_row = (batch * gradient.stride(0) + head * gradient.stride(1) + token * gradient.stride(2)) / N::value();
    let (cos_row, sin_row) = (token * cos.stride(0) / N::value(), token * sin.stride(0) / N::value());

    let inverse = inverse_root::<T, N>(x, from, pieces, width, epsilon);
    let mut products = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS_PLANE as usize, pieces, PLANE as usize) {
        let d = turned_back::<T, W, A, N>(gradient[g_row + i], weight[i], cos[cos_row + i], sin[sin_row + i]);
        products += d * Vector::cast_from(x[from + i]);
    }
    let slope = plane_sum(products.vector_sum()) * inverse * inverse / f32::cast_from(width);
    for i in range_stepped(UNIT_POS_PLANE as usize, pieces, PLANE as usize) {
        let d = turned_back::<T, W, A, N>(gradient[g_row + i], weight[i], cos[cos_row + i], sin[sin_row + i]);
        let x = Vector::<f32, N>::cast_from(x[from + i]);
        dx[row * pieces + i] = Vector::cast_from((d - x * Vector::new(slope)) * Vector::new(inverse));
    }
}

/// The reciprocal root mean square of a row.
#[cube]
fn inverse_root<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    from: usize,
    pieces: usize,
    width: usize,
    epsilon: f32,
) -> f32 {
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS_PLANE as usize, pieces, PLANE as usize) {
        let x = Vector::<f32, N>::cast_from(x[from + i]);
        squares += x * x;
    }
    1.0 / (plane_sum(squares.vector_sum()) / f32::cast_from(width) + epsilon).sqrt()
}

/// The gradient rotated back, times the weight. The transpose of a quarter turn is the opposite quarter turn.
#[cube]
fn turned_back<T: Float, W: Float, A: Float, N: Size>(
    gradient: Vector<T, N>,
    weight: Vector<W, N>,
    cos: Vector<A, N>,
    sin: Vector<A, N>,
) -> Vector<f32, N> {
    let g = Vector::<f32, N>::cast_from(gradient);
    let turned = quarter_turn::<N>(g * Vector::cast_from(sin));
    (g * Vector::cast_from(cos) - turned) * Vector::cast_from(weight)
}

/// `(-im, re)` of each pair `(re, im)`.
#[cube]
fn quarter_turn<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let mut turned = Vector::<f32, N>::empty();
    let pairs = N::value().comptime() / 2;
    #[unroll]
    for pair in 0..pairs {
        turned.insert(2 * pair, -x.extract(2 * pair + 1));
        turned.insert(2 * pair + 1, x.extract(2 * pair));
    }
    turned
}
