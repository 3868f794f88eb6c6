//! The optimizer: one launch for each tensor.

use burn::tensor::DType;
use burn_cubecl::{
    cubecl::{self, prelude::*},
    kernel::into_contiguous,
};

use super::{
    CudaTensor, PLANE, RawTensor, UNITS, address_type, cube_sum, cubes_of_units, empty, one_type, raw_tensor, storage,
    vector_size,
};

/// The tensor made contiguous, in memory that nothing else holds: for an update in place.
fn owned(tensor: CudaTensor) -> CudaTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// Updates a parameter and its moments from its gradient; returns parameter and moments.
/// The factors are `[keep, rate, root, 1 - β₁, β₂, 1 - β₂, ε]`.
pub fn update([p, gradient, m, v]: [CudaTensor; 4], factors: [f32; 7]) -> [RawTensor; 3] {
    let (gradient, [p, m, v]) = (into_contiguous(gradient), [p, m, v].map(owned));
    let all = [&p, &gradient, &m, &v];
    let (size, address, dtype) = (vector_size(&all), address_type(&all), one_type(&all));
    let (count, dim) = cubes_of_units(&p, p.meta.num_elements() / size);
    let [keep, rate, root, fresh1, beta2, fresh2, epsilon] = factors;
    // SAFETY: a unit past the parameter returns at once, and all four have the same shape.
    unsafe {
        step::launch_unchecked(
            &p.client,
            count,
            dim,
            address,
            size,
            p.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            keep,
            rate,
            root,
            fresh1,
            beta2,
            fresh2,
            epsilon,
            dtype,
        );
    }
    [p, m, v].map(raw_tensor)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step<T: Float, N: Size>(
    p: &mut Tensor<Vector<T, N>>,
    gradient: &Tensor<Vector<T, N>>,
    m: &mut Tensor<Vector<T, N>>,
    v: &mut Tensor<Vector<T, N>>,
    keep: f32,
    rate: f32,
    root: f32,
    fresh1: f32,
    beta2: f32,
    fresh2: f32,
    epsilon: f32,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= p.len() {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(gradient[i]);
    let mean = Vector::<f32, N>::cast_from(m[i]);
    let mean = mean + (g - mean) * Vector::new(fresh1);
    let square = Vector::<f32, N>::cast_from(v[i]) * Vector::new(beta2) + g * g * Vector::new(fresh2);
    let change = mean / (square.sqrt() / Vector::new(root) + Vector::new(epsilon));
    p[i] = Vector::cast_from(Vector::<f32, N>::cast_from(p[i]) * Vector::new(keep) - change * Vector::new(rate));
    m[i] = Vector::cast_from(mean);
    v[i] = Vector::cast_from(square);
}

/// The number of cubes that sum one tensor.
const CUBES: usize = 64;

/// The sum of the squares of all elements of all tensors, which have one dtype.
pub fn sum_of_squares(rows: Vec<CudaTensor>) -> burn::tensor::Tensor<1> {
    let rows: Vec<CudaTensor> = rows.into_iter().map(into_contiguous).collect();
    let partial = empty(&rows[0], [rows.len() * CUBES], DType::F32);
    for (i, row) in rows.into_iter().enumerate() {
        let (size, address) = (vector_size(&[&row]), address_type(&[&row, &partial]));
        let (client, dtype) = (row.client.clone(), storage(row.dtype));
        let (count, dim) = (CubeCount::new_1d(CUBES as u32), CubeDim::new_1d(UNITS));
        let (from, to) = (row.into_tensor_arg(), partial.clone().into_tensor_arg());
        // SAFETY: the units stop at the end of the row, and each cube writes to its own element.
        unsafe { add_squares::launch_unchecked(&client, count, dim, address, size, from, to, i * CUBES, dtype) };
    }
    burn::tensor::Tensor::<1>::from_dispatch(raw_tensor(partial)).sum()
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_squares<T: Float, N: Size>(
    row: &Tensor<Vector<T, N>>,
    partial: &mut Tensor<f32>,
    place: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!((UNITS / PLANE) as usize));
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(ABSOLUTE_POS, row.len(), comptime!(CUBES * UNITS as usize)) {
        let x = Vector::<f32, N>::cast_from(row[i]);
        squares += x * x;
    }
    let sum = cube_sum(squares.vector_sum(), &mut shared, comptime!(UNITS / PLANE));
    if UNIT_POS == 0 {
        partial[place + CUBE_POS] = sum;
    }
}
