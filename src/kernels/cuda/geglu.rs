//! The gated feed-forward unit of a UNet (GEGLU).

use std::f32::consts::FRAC_1_SQRT_2;

use burn_cubecl::cubecl::{self, prelude::*};

use super::{
    CudaTensor, RawTensor, address_type, cubes_of_units, dims, empty, in_rows, one_type, raw_tensor, vector_size,
};

/// `a·gelu(b)` for the halves of each row: `[M, 2·D]` → `[M, D]`.
pub fn forward(x: CudaTensor) -> RawTensor {
    let x = in_rows(x);
    let [rows, width] = dims(&x);
    let y = empty(&x, [rows, width / 2], x.dtype);
    let all = [&x, &y];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&x, y.meta.num_elements() / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    let (from, to) = (x.into_tensor_arg(), y.clone().into_tensor_arg());
    // SAFETY: a unit past the output returns at once.
    unsafe { gate::launch_unchecked(&client, count, dim, address, size, from, to, dtype) };
    raw_tensor(y)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gate<T: Float, N: Size>(x: &Tensor<Vector<T, N>>, y: &mut Tensor<Vector<T, N>>, #[define(T)] _dtype: StorageType) {
    let pieces = y.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / pieces, ABSOLUTE_POS % pieces);
    if row >= y.shape(0) {
        terminate!();
    }
    let from = row * x.stride(0) / N::value() + column;
    let a = Vector::<f32, N>::cast_from(x[from]);
    let b = Vector::<f32, N>::cast_from(x[from + pieces]);
    y[ABSOLUTE_POS] = Vector::cast_from(a * b * distribution::<N>(b));
}

/// `da = g·b·Φ(b)`, `db = g·a·(Φ(b) + b·φ(b))`, side by side: `x` `[M, 2·D]`, `g` `[M, D]` → `[M, 2·D]`.
pub fn backward(inputs: [CudaTensor; 2]) -> RawTensor {
    let [x, gradient] = inputs.map(in_rows);
    let dx = empty(&x, dims::<2>(&x), x.dtype);
    let all = [&x, &gradient, &dx];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&x, gradient.meta.num_elements() / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    let (x, gradient, to) = (x.into_tensor_arg(), gradient.into_tensor_arg(), dx.clone().into_tensor_arg());
    // SAFETY: a unit past the gradient returns at once.
    unsafe { backward_kernel::launch_unchecked(&client, count, dim, address, size, x, gradient, to, dtype) };
    raw_tensor(dx)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    dx: &mut Tensor<Vector<T, N>>,
    #[define(T)] _dtype: StorageType,
) {
    let pieces = gradient.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / pieces, ABSOLUTE_POS % pieces);
    if row >= gradient.shape(0) {
        terminate!();
    }
    let from = row * x.stride(0) / N::value() + column;
    let a = Vector::<f32, N>::cast_from(x[from]);
    let b = Vector::<f32, N>::cast_from(x[from + pieces]);
    let g = Vector::<f32, N>::cast_from(gradient[row * gradient.stride(0) / N::value() + column]);
    let share = distribution::<N>(b);
    // 1/√(2π)
    let density = (b * b * Vector::new(-0.5)).exp() * Vector::new(0.398_942_3);
    let to = 2 * row * pieces + column;
    dx[to] = Vector::cast_from(g * b * share);
    dx[to + pieces] = Vector::cast_from(g * a * (share + b * density));
}

/// `Φ(x)` of the standard normal.
#[cube]
fn distribution<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    ((x * Vector::new(FRAC_1_SQRT_2)).erf() + Vector::new(1.0)) * Vector::new(0.5)
}
