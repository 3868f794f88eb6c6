//! Activations.

use burn_cubecl::cubecl::{
    self,
    prelude::*,
    std::tensor::layout::linear::{LinearView, LinearViewMut},
};

use super::{CudaTensor, RawTensor, address_type, cubes_of_units, empty, one_type, raw_tensor, vector_size};
use crate::kernels::formulas::{Activation, CUBIC, ROOT};

/// The activation of each element.
pub fn forward(kind: Activation, x: CudaTensor) -> RawTensor {
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let all = [&x, &y];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&x, x.meta.num_elements() / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    let (from, to) = (x.into_linear_view(), y.clone().into_linear_view());
    // SAFETY: a unit past the output returns at once, and the input has the output's shape.
    unsafe { activate::launch_unchecked(&client, count, dim, address, size, from, to, kind, dtype) };
    raw_tensor(y)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activate<T: Float, N: Size>(
    x: LinearView<'_, Vector<T, N>>,
    mut y: LinearViewMut<'_, Vector<T, N>>,
    #[comptime] kind: Activation,
    #[define(T)] _dtype: StorageType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x.read(ABSOLUTE_POS));
    let (s, _) = sigmoid::<N>(argument::<N>(x, kind));
    y.write(ABSOLUTE_POS, Vector::cast_from(x * s));
}

/// The derivative of the activation at each `x` times the gradient.
pub fn backward(kind: Activation, [x, gradient]: [CudaTensor; 2]) -> RawTensor {
    let dx = empty(&x, x.meta.shape().clone(), x.dtype);
    let all = [&x, &gradient, &dx];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&x, x.meta.num_elements() / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    let [x, gradient, to] = [x, gradient, dx.clone()].map(CudaTensor::into_linear_view);
    // SAFETY: a unit past the output returns at once, and the inputs have the output's shape.
    unsafe { backward_kernel::launch_unchecked(&client, count, dim, address, size, x, gradient, to, kind, dtype) };
    raw_tensor(dx)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<T: Float, N: Size>(
    x: LinearView<'_, Vector<T, N>>,
    gradient: LinearView<'_, Vector<T, N>>,
    mut dx: LinearViewMut<'_, Vector<T, N>>,
    #[comptime] kind: Activation,
    #[define(T)] _dtype: StorageType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x.read(ABSOLUTE_POS));
    let gradient = Vector::<f32, N>::cast_from(gradient.read(ABSOLUTE_POS));
    let (s, t) = sigmoid::<N>(argument::<N>(x, kind));
    let steep = match kind {
        Activation::GeluTanh => (x * x * Vector::new(3.0 * CUBIC) + Vector::new(1.0)) * Vector::new(2.0 * ROOT),
        Activation::Silu => Vector::new(1.0),
    };
    dx.write(ABSOLUTE_POS, Vector::cast_from(gradient * (s + x * s * t * steep)));
}

/// The argument of the logistic function.
#[cube]
fn argument<N: Size>(x: Vector<f32, N>, #[comptime] kind: Activation) -> Vector<f32, N> {
    match kind {
        Activation::GeluTanh => x * (x * x * Vector::new(CUBIC) + Vector::new(1.0)) * Vector::new(2.0 * ROOT),
        Activation::Silu => x,
    }
}

/// `(σ(x), 1 - σ(x))` of the logistic function σ; both keep their relative precision.
#[cube]
pub fn sigmoid<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let e = (-max(x, Vector::new(-80.0))).exp();
    let s = Vector::new(1.0) / (Vector::new(1.0) + e);
    (s, e * s)
}
