//! The gated residual.

use burn::tensor::{DType, FloatDType};
use burn_cubecl::cubecl::{
    self,
    prelude::*,
    std::tensor::layout::linear::{LinearView, LinearViewMut},
};

use super::{
    CudaTensor, RawTensor, TOKENS, UNITS, address_type, cubes_of_units, dims, empty, in_rows, one_type, raw_tensor,
    sum_chunks, vector_size,
};

/// `x + gate·y`.
pub fn forward([x, gate, y]: [CudaTensor; 3]) -> RawTensor {
    let gate = in_rows(gate);
    let shape @ [_, tokens, width] = dims(&x);
    let sum = empty(&x, shape, x.dtype);
    let all = [&x, &gate, &y, &sum];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&x, sum.meta.num_elements() / size);
    let (client, dtype) = (x.client.clone(), one_type(&all));
    // SAFETY: a unit past the output returns at once, and the inputs have the output's shape.
    unsafe {
        add::launch_unchecked(
            &client,
            count,
            dim,
            address,
            size,
            x.into_linear_view(),
            gate.into_tensor_arg(),
            y.into_linear_view(),
            sum.clone().into_linear_view(),
            tokens,
            width / size,
            dtype,
        );
    }
    raw_tensor(sum)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add<T: Float, N: Size>(
    x: LinearView<'_, Vector<T, N>>,
    gate: &Tensor<Vector<T, N>>,
    y: LinearView<'_, Vector<T, N>>,
    mut sum: LinearViewMut<'_, Vector<T, N>>,
    tokens: usize,
    pieces: usize,
    #[define(T)] _dtype: StorageType,
) {
    if !sum.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let gated = times_gate::<T, N>(gate, y.read(ABSOLUTE_POS), tokens, pieces);
    sum.write(ABSOLUTE_POS, Vector::cast_from(Vector::<f32, N>::cast_from(x.read(ABSOLUTE_POS)) + gated));
}

/// `y` at this unit's position, times the gate of its sample.
#[cube]
fn times_gate<T: Float, N: Size>(
    gate: &Tensor<Vector<T, N>>,
    y: Vector<T, N>,
    tokens: usize,
    pieces: usize,
) -> Vector<f32, N> {
    let batch = ABSOLUTE_POS / (tokens * pieces);
    let gate = gate[batch * gate.stride(0) / N::value() + ABSOLUTE_POS % pieces];
    Vector::<f32, N>::cast_from(y) * Vector::cast_from(gate)
}

/// The wanted gradients of `gate` and `y`, from `gate`, `y` and the gradient of the output.
pub fn backward(inputs: [CudaTensor; 3], wants_gate: bool, wants_y: bool) -> [Option<RawTensor>; 2] {
    let [gate, y, gradient] = inputs.map(in_rows);
    let dgate = wants_gate.then(|| {
        let sums = sum_chunks(of_gate(&y, &gradient));
        sums.cast(FloatDType::from(gate.dtype)).into_dispatch()
    });
    [dgate, wants_y.then(|| of_rows(gate, gradient))]
}

/// `gate·g`.
fn of_rows(gate: CudaTensor, gradient: CudaTensor) -> RawTensor {
    let shape @ [_, tokens, width] = dims(&gradient);
    let dy = empty(&gradient, shape, gradient.dtype);
    let all = [&gate, &gradient, &dy];
    let (size, address) = (vector_size(&all), address_type(&all));
    let (count, dim) = cubes_of_units(&dy, dy.meta.num_elements() / size);
    let (client, dtype) = (dy.client.clone(), one_type(&all));
    let (gate, gradient, to) = (gate.into_tensor_arg(), gradient.into_linear_view(), dy.clone().into_linear_view());
    // SAFETY: a unit past the output returns at once, and the gradient has the output's shape.
    unsafe {
        multiply::launch_unchecked(&client, count, dim, address, size, gate, gradient, to, tokens, width / size, dtype);
    }
    raw_tensor(dy)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn multiply<T: Float, N: Size>(
    gate: &Tensor<Vector<T, N>>,
    gradient: LinearView<'_, Vector<T, N>>,
    mut dy: LinearViewMut<'_, Vector<T, N>>,
    tokens: usize,
    pieces: usize,
    #[define(T)] _dtype: StorageType,
) {
    if !dy.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let product = times_gate::<T, N>(gate, gradient.read(ABSOLUTE_POS), tokens, pieces);
    dy.write(ABSOLUTE_POS, Vector::cast_from(product));
}

/// `Σ g·y` of each chunk of rows.
fn of_gate(y: &CudaTensor, gradient: &CudaTensor) -> CudaTensor {
    let [batch, tokens, width] = dims(y);
    let chunks = tokens.div_ceil(TOKENS);
    let partial = empty(y, [batch, chunks, width], DType::F32);
    let all = [y, gradient, &partial];
    let dtype = one_type(&[y, gradient]);
    let (size, address) = (vector_size(&all), address_type(&all));
    let count = CubeCount::new_3d((width / size).div_ceil(UNITS as usize) as u32, chunks as u32, batch as u32);
    let (y, gradient, to) = (y.clone(), gradient.clone(), partial.clone());
    let client = y.client.clone();
    let [y, gradient, to] = [y, gradient, to].map(CudaTensor::into_tensor_arg);
    // SAFETY: units past the width return at once, and the last chunk of a sample stops at its last row.
    unsafe {
        add_rows::launch_unchecked(&client, count, CubeDim::new_1d(UNITS), address, size, y, gradient, to, dtype);
    }
    partial
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_rows<T: Float, N: Size>(
    y: &Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    partial: &mut Tensor<Vector<f32, N>>,
    #[define(T)] _dtype: StorageType,
) {
    let (tokens, pieces) = (y.shape(1), y.shape(2) / N::value());
    let column = (CUBE_POS_X * UNITS + UNIT_POS) as usize;
    let (chunk, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    if column >= pieces {
        terminate!();
    }
    let mut sum = Vector::<f32, N>::new(0.0);
    for token in chunk * TOKENS..min((chunk + 1) * TOKENS, tokens) {
        let g = gradient[(batch * gradient.stride(0) + token * gradient.stride(1)) / N::value() + column];
        let y = y[(batch * y.stride(0) + token * y.stride(1)) / N::value() + column];
        sum += Vector::<f32, N>::cast_from(g) * Vector::cast_from(y);
    }
    let start = (batch * partial.shape(1) + chunk) * pieces;
    partial[start + column] = sum;
}
