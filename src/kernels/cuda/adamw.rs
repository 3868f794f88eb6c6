//! The optimizer, with many tensors to a launch: a LoRA of FLUX.1 has 684, most of which take less time than their launch.

use burn::tensor::DType;
use burn_cubecl::{
    cubecl::{self, prelude::*},
    kernel::into_contiguous,
};

use super::{
    CudaTensor, PLANE, RawTensor, UNITS, address_type, arguments, cube_sum, empty, one_type, raw_tensor, vector_size,
};
use crate::kernels::formulas::UPDATES_PER_LAUNCH;

/// The number of cubes per tensor, at most; their units go on through larger tensors.
const MOST_CUBES: usize = 4096;

/// The tensor made contiguous, in memory that nothing else holds: for an update in place.
fn owned(tensor: CudaTensor) -> CudaTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// Updates parameters and their moments from their gradients times `scale` `[1]`; returns parameters and moments.
/// The factors are `[keep, rate, root, 1 - β₁, β₂, 1 - β₂, ε]`.
pub fn update(tensors: Vec<[CudaTensor; 4]>, scale: CudaTensor, factors: [f32; 7]) -> Vec<[RawTensor; 3]> {
    let ready = tensors.into_iter().map(|[p, g, m, v]| [owned(p), into_contiguous(g), owned(m), owned(v)]);
    let ready: Vec<[CudaTensor; 4]> = ready.collect();
    let size = |tensors: &[CudaTensor; 4]| vector_size(&tensors.each_ref());
    let alike = ready.chunk_by(|a, b| size(a) == size(b));
    alike
        .flat_map(|alike| alike.chunks(UPDATES_PER_LAUNCH))
        .for_each(|group| launch_step(group, size(&group[0]), &scale, factors));
    ready.into_iter().map(|[p, _, m, v]| [p, m, v].map(raw_tensor)).collect()
}

fn launch_step(group: &[[CudaTensor; 4]], size: VectorSize, scale: &CudaTensor, factors: [f32; 7]) {
    let all: Vec<&CudaTensor> = group.iter().flatten().collect();
    let (address, dtype, client) = (address_type(&all), one_type(&all), &scale.client);
    let [keep, rate, root, fresh1, beta2, fresh2, epsilon] = factors;
    let (count, dim) = cubes(group.iter().map(|[p, ..]| p.meta.num_elements() / size));
    // SAFETY: the units stop at the end of their tensor, and the four of a group have one shape.
    unsafe {
        step::launch_unchecked(
            client,
            count,
            dim,
            address,
            size,
            arguments(group.iter().map(|[p, ..]| p)),
            arguments(group.iter().map(|[_, g, ..]| g)),
            arguments(group.iter().map(|[_, _, m, _]| m)),
            arguments(group.iter().map(|[.., v]| v)),
            scale.clone().into_tensor_arg(),
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
}

/// The cubes for tensors of so many vectors: along x for the largest, along y one row per tensor.
fn cubes(vectors: impl ExactSizeIterator<Item = usize>) -> (CubeCount, CubeDim) {
    let tensors = vectors.len() as u32;
    let across = vectors.max().unwrap_or(0).div_ceil(UNITS as usize).clamp(1, MOST_CUBES);
    (CubeCount::new_2d(across as u32, tensors), CubeDim::new_1d(UNITS))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step<T: Float, N: Size>(
    parameters: &mut Sequence<OwnedTensor<Vector<T, N>>>,
    gradients: &Sequence<OwnedTensor<Vector<T, N>>>,
    means: &mut Sequence<OwnedTensor<Vector<T, N>>>,
    squares: &mut Sequence<OwnedTensor<Vector<T, N>>>,
    scale: &Tensor<f32>,
    keep: f32,
    rate: f32,
    root: f32,
    fresh1: f32,
    beta2: f32,
    fresh2: f32,
    epsilon: f32,
    #[define(T)] _dtype: StorageType,
) {
    let first = (CUBE_POS_X * UNITS + UNIT_POS) as usize;
    let stride = (CUBE_COUNT_X * UNITS) as usize;
    #[unroll]
    for tensor in 0..parameters.len() {
        if CUBE_POS_Y as usize == tensor {
            let p = &mut parameters[tensor];
            let (gradient, m, v) = (&gradients[tensor], &mut means[tensor], &mut squares[tensor]);
            // Not `range_stepped`: this version of CubeCL drops the computation of a step that is no constant.
            let mut i = first;
            while i < p.len() {
                let g = Vector::<f32, N>::cast_from(gradient[i]) * Vector::new(scale[0]);
                let mean = Vector::<f32, N>::cast_from(m[i]);
                let mean = mean + (g - mean) * Vector::new(fresh1);
                let square = Vector::<f32, N>::cast_from(v[i]) * Vector::new(beta2) + g * g * Vector::new(fresh2);
                let change = mean / (square.sqrt() / Vector::new(root) + Vector::new(epsilon));
                let kept = Vector::<f32, N>::cast_from(p[i]) * Vector::new(keep);
                p[i] = Vector::cast_from(kept - change * Vector::new(rate));
                m[i] = Vector::cast_from(mean);
                v[i] = Vector::cast_from(square);
                i += stride;
            }
        }
    }
}

/// The number of cubes that sum one tensor.
const CUBES: usize = 64;

/// The sum of the squares of all elements of all tensors, which have one dtype.
pub fn sum_of_squares(rows: Vec<CudaTensor>) -> burn::tensor::Tensor<1> {
    let rows: Vec<CudaTensor> = rows.into_iter().map(into_contiguous).collect();
    let partial = empty(&rows[0], [rows.len(), CUBES], DType::F32);
    let size = |row: &CudaTensor| vector_size(&[row]);
    let mut first = 0;
    for group in rows.chunk_by(|a, b| size(a) == size(b)).flat_map(|alike| alike.chunks(UPDATES_PER_LAUNCH)) {
        let all: Vec<&CudaTensor> = group.iter().collect();
        let (dtype, address) = (one_type(&all), address_type(&[&all[..], &[&partial]].concat()));
        let count = CubeCount::new_2d(CUBES as u32, group.len() as u32);
        let (rows, to) = (arguments(group), partial.clone().into_tensor_arg());
        // SAFETY: the units stop at the end of their row, and each cube writes to its own element.
        unsafe {
            add_squares::launch_unchecked(
                &partial.client,
                count,
                CubeDim::new_1d(UNITS),
                address,
                size(&group[0]),
                rows,
                to,
                first,
                dtype,
            );
        }
        first += group.len() * CUBES;
    }
    burn::tensor::Tensor::<2>::from_dispatch(raw_tensor(partial)).sum()
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_squares<T: Float, N: Size>(
    rows: &Sequence<OwnedTensor<Vector<T, N>>>,
    partial: &mut Tensor<f32>,
    first: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!((UNITS / PLANE) as usize));
    let mut squares = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..rows.len() {
        if CUBE_POS_Y as usize == i {
            let row = &rows[i];
            for j in
                range_stepped((CUBE_POS_X * UNITS + UNIT_POS) as usize, row.len(), comptime!(CUBES * UNITS as usize))
            {
                let x = Vector::<f32, N>::cast_from(row[j]);
                squares += x * x;
            }
        }
    }
    let sum = cube_sum(squares.vector_sum(), &mut shared, comptime!(UNITS / PLANE));
    if UNIT_POS == 0 {
        partial[first + CUBE_POS] = sum;
    }
}
