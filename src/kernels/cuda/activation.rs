//! Activations.

use burn_cubecl::cubecl::{
    self,
    prelude::*,
    std::tensor::layout::linear::{LinearView, LinearViewMut},
};

use super::{CudaTensor, Plain, address_type, cubes_of_units, empty, plain, storage, tensors, vector_size};
use crate::kernels::activation::{CUBIC, Kind, ROOT};

/// The activation of each number.
pub fn forward(kind: Kind, input: [Plain; 1]) -> Plain {
    let [x] = tensors(input);
    launch(kind, x.clone(), x, false)
}

/// The slope of the activation at each `x` times the gradient.
pub fn backward(kind: Kind, inputs: [Plain; 2]) -> Plain {
    let [x, gradient] = tensors(inputs);
    launch(kind, x, gradient, true)
}

fn launch(kind: Kind, x: CudaTensor, gradient: CudaTensor, slope: bool) -> Plain {
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let size = vector_size(&[&x, &gradient, &y]);
    let (count, dim) = cubes_of_units(&x, x.meta.num_elements() / size);
    let address = address_type(&[&x, &gradient, &y]);
    let client = x.client.clone();
    let dtype = storage(x.dtype);
    // SAFETY: a unit beyond the output ends at once, and the inputs have the output's shape.
    unsafe {
        activate::launch_unchecked(
            &client,
            count,
            dim,
            address,
            size,
            x.into_linear_view(),
            gradient.into_linear_view(),
            y.clone().into_linear_view(),
            kind,
            slope,
            dtype,
        );
    }
    plain(y)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activate<T: Float, N: Size>(
    x: LinearView<'_, Vector<T, N>>,
    gradient: LinearView<'_, Vector<T, N>>,
    mut y: LinearViewMut<'_, Vector<T, N>>,
    #[comptime] kind: Kind,
    #[comptime] slope: bool,
    #[define(T)] _dtype: StorageType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x.read(ABSOLUTE_POS));
    let one = Vector::<f32, N>::new(1.0);
    let (argument, steep) = match kind {
        Kind::GeluTanh => {
            let square = x * x;
            let argument = x * (square * Vector::new(CUBIC) + one) * Vector::new(2.0 * ROOT);
            (argument, (square * Vector::new(3.0 * CUBIC) + one) * Vector::new(2.0 * ROOT))
        }
        Kind::Silu => (x, one),
    };
    let (s, t) = sigmoid::<N>(argument);
    let value = if slope {
        let gradient = Vector::<f32, N>::cast_from(gradient.read(ABSOLUTE_POS));
        gradient * (s + x * s * t * steep)
    } else {
        x * s
    };
    y.write(ABSOLUTE_POS, Vector::cast_from(value));
}

/// `(σ(x), 1 - σ(x))` of the logistic function σ; both keep their relative precision.
#[cube]
pub fn sigmoid<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let e = (-max(x, Vector::new(-80.0))).exp();
    let s = Vector::new(1.0) / (Vector::new(1.0) + e);
    (s, e * s)
}
