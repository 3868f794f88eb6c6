//! The softmax of attention scores: one cube per row, which it reads once and replaces.

use burn::tensor::{self, DType};
use burn_cubecl::{
    cubecl::{
        self,
        prelude::*,
        std::tensor::{MatrixBatchLayout, matrix_batch_layout},
    },
    kernel::{cast, into_contiguous},
};

use super::{
    CudaTensor, PLANE, RawTensor, address_type, cube_sum, dims, matmul,
    product::{self, Product},
    raw_tensor, storage, tensors, vector_size,
};
use crate::cuda::{Library, library};

/// The factor for q if scores are f16, a power of two, so that they stay in range: up to 4 million, with steps 8 times finer than
/// bf16's. (In f32 they would add a fifth to the memory traffic of the backward pass.)
const SHRINK: f64 = 1.0 / 64.0;

/// The tensor in a layout that matrix products can read; copied only if each of them would copy it.
pub fn contiguous_rows(tensor: CudaTensor) -> RawTensor {
    match matrix_batch_layout(tensor.meta.strides(), None) {
        MatrixBatchLayout::HighlyPermuted => raw_tensor(into_contiguous(tensor)),
        _ => raw_tensor(tensor),
    }
}

/// `softmax(q·kᵀ/√K)`, `[B, N, L, S]`.
pub fn probabilities([q, k]: [CudaTensor; 2]) -> RawTensor {
    let dtype = q.dtype;
    let (scores, scale) = scores(q, k);
    let (count, dim, each, size) = rows(&[&scores]);
    let client = scores.client.clone();
    // SAFETY: there is exactly one cube per row, and its units stop at the width of the row.
    unsafe {
        softmax::launch_unchecked(
            &client,
            count,
            dim,
            address_type(&[&scores]),
            size,
            scores.clone().into_tensor_arg(),
            scale,
            each,
            dim.x / PLANE,
            [storage(scores.dtype), storage(dtype)],
        );
    }
    raw_tensor(CudaTensor { dtype, ..scores })
}

/// The probabilities, and the gradient of `q·kᵀ` from the gradient `g` of the output.
pub fn slopes([q, k, v, g]: [CudaTensor; 4]) -> [RawTensor; 2] {
    let ([.., width], dtype) = (dims::<4>(&q), q.dtype);
    let (scores, scale) = scores(q, k);
    let dp = product(g, v, dtype);
    let (count, dim, each, size) = rows(&[&scores, &dp]);
    let client = scores.client.clone();
    // SAFETY: there is exactly one cube per row, and its units stop at the width of the row.
    unsafe {
        softmax_slopes::launch_unchecked(
            &client,
            count,
            dim,
            address_type(&[&scores, &dp]),
            size,
            scores.clone().into_tensor_arg(),
            dp.clone().into_tensor_arg(),
            scale,
            1.0 / (width as f32).sqrt(),
            each,
            dim.x / PLANE,
            [storage(scores.dtype), storage(dtype)],
        );
    }
    [raw_tensor(CudaTensor { dtype, ..scores }), raw_tensor(dp)]
}

/// `q·kᵀ` scaled down, and the factor that restores the scores. In 16 bits this is f16, whose steps are finer than bf16's.
fn scores(q: CudaTensor, k: CudaTensor) -> (CudaTensor, f32) {
    let [.., width] = dims::<4>(&q);
    let scale = 1.0 / (width as f64).sqrt();
    match q.dtype {
        DType::F32 => (product(q, k, DType::F32), scale as f32),
        _ => {
            let rest = (scale / SHRINK) as f32;
            if let Some(scores) = by_library(q.clone(), k.clone()) {
                return (scores, rest);
            }
            let q = tensor::Tensor::<4>::from_dispatch(raw_tensor(q)) * SHRINK;
            let [q] = tensors([q.into_dispatch()]);
            (product(q, k, DType::F16), rest)
        }
    }
}

/// `q·kᵀ` scaled down, in f16, by cuBLASLt if available: it can output f16 only from f16 factors. bf16 values outside f16's range
/// are too small to matter in a score, or larger than any valid score.
fn by_library(q: CudaTensor, k: CudaTensor) -> Option<CudaTensor> {
    library(Library::CublasLt)?;
    let [q, k] = [q, k].map(|tensor| cast(tensor, DType::F16));
    product::product(Product { scale: SHRINK as f32, ..Product::new(&q, &turned(k)) })
}

/// `a·bᵀ` over the last two axes, summed in f32; f32 factors without the rounding of tensor cores.
fn product(a: CudaTensor, b: CudaTensor, dtype: DType) -> CudaTensor {
    matmul::product_as(a, turned(b), dtype)
}

/// The last two axes the other way round, without moving anything.
fn turned(tensor: CudaTensor) -> CudaTensor {
    let [turned] = tensors([tensor::Tensor::<4>::from_dispatch(raw_tensor(tensor)).transpose().into_dispatch()]);
    turned
}

/// Pieces of a row that a unit keeps in registers, if the row is short enough for 512 units.
const EACH: usize = 3;

/// One cube per row, its units, the pieces per unit, and the elements per piece.
fn rows(tensors: &[&CudaTensor]) -> (CubeCount, CubeDim, usize, VectorSize) {
    let shape = tensors[0].meta.shape();
    let (rows, width) = shape.split_at(shape.len() - 1);
    let size = vector_size(tensors);
    let pieces = width[0] / size;
    let units = pieces.div_ceil(EACH).next_multiple_of(PLANE as usize).clamp(PLANE as usize, 512);
    let count = CubeCount::new_1d(rows.iter().product::<usize>() as u32);
    (count, CubeDim::new_1d(units as u32), pieces.div_ceil(units), size)
}

/// Replaces each row by its softmax, stored in another dtype of the same size.
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax<S: Float, T: Float, N: Size>(
    scores: &mut Tensor<Vector<S, N>>,
    scale: f32,
    #[comptime] each: usize,
    #[comptime] planes: u32,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let pieces = scores.shape(3) / N::value();
    let row = CUBE_POS * (scores.stride(2) / N::value());
    let p = exponentials(&*scores, row, pieces, scale, &mut shared, each, planes);
    let mut total = Vector::<f32, N>::new(0.0);
    #[unroll]
    for i in 0..each {
        total += p[i];
    }
    let inverse = 1.0 / cube_sum(total.vector_sum(), &mut shared, planes);
    #[unroll]
    for i in 0..each {
        let at = UNIT_POS as usize + i * CUBE_DIM as usize;
        if at < pieces {
            scores[row + at] = Vector::reinterpret(Vector::<T, N>::cast_from(p[i] * Vector::new(inverse)));
        }
    }
}

/// Replaces each row of the scores by its softmax `p`, and of `dp` by `p∘(dp - Σ p∘dp)·factor`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax_slopes<S: Float, T: Float, N: Size>(
    scores: &mut Tensor<Vector<S, N>>,
    dp: &mut Tensor<Vector<T, N>>,
    scale: f32,
    factor: f32,
    #[comptime] each: usize,
    #[comptime] planes: u32,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let mut shared = Shared::<[f32]>::new_slice(planes as usize);
    let pieces = scores.shape(3) / N::value();
    let row = CUBE_POS * (scores.stride(2) / N::value());
    let dp_row = CUBE_POS * (dp.stride(2) / N::value());
    let p = exponentials(&*scores, row, pieces, scale, &mut shared, each, planes);
    let mut slope = Array::<Vector<f32, N>>::new(each);
    let (mut total, mut level) = (Vector::<f32, N>::new(0.0), Vector::<f32, N>::new(0.0));
    #[unroll]
    for i in 0..each {
        let at = UNIT_POS as usize + i * CUBE_DIM as usize;
        slope[i] = Vector::new(0.0);
        if at < pieces {
            slope[i] = Vector::cast_from(dp[dp_row + at]);
        }
        total += p[i];
        level += p[i] * slope[i];
    }
    let inverse = 1.0 / cube_sum(total.vector_sum(), &mut shared, planes);
    let level = inverse * cube_sum(level.vector_sum(), &mut shared, planes);
    #[unroll]
    for i in 0..each {
        let at = UNIT_POS as usize + i * CUBE_DIM as usize;
        if at < pieces {
            let p = p[i] * Vector::new(inverse);
            scores[row + at] = Vector::reinterpret(Vector::<T, N>::cast_from(p));
            dp[dp_row + at] = Vector::cast_from(p * (slope[i] - Vector::new(level)) * Vector::new(factor));
        }
    }
}

/// `exp(scale·(score - the row's maximum))` for the pieces of this unit, 0 past the row.
#[cube]
fn exponentials<S: Float, N: Size>(
    scores: &Tensor<Vector<S, N>>,
    row: usize,
    pieces: usize,
    scale: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] each: usize,
    #[comptime] planes: u32,
) -> Array<Vector<f32, N>> {
    let mut p = Array::<Vector<f32, N>>::new(each);
    let mut most = Vector::<f32, N>::new(f32::MIN);
    #[unroll]
    for i in 0..each {
        let at = UNIT_POS as usize + i * CUBE_DIM as usize;
        p[i] = Vector::new(f32::MIN);
        if at < pieces {
            p[i] = Vector::cast_from(scores[row + at]);
        }
        most = max(most, p[i]);
    }
    let mut of_piece = most.extract(0);
    #[unroll]
    for i in 1..N::value() {
        of_piece = max(of_piece, most.extract(i));
    }
    let most = cube_max(of_piece, shared, planes);
    #[unroll]
    for i in 0..each {
        p[i] = ((p[i] - Vector::new(most)) * Vector::new(scale)).exp();
    }
    p
}

/// The maximum of `value` over the units of the cube, returned to each of them. `shared` has one element per plane.
#[cube]
fn cube_max(value: f32, shared: &mut Shared<[f32]>, #[comptime] planes: u32) -> f32 {
    let value = plane_max(value);
    if planes == 1 {
        value
    } else {
        if UNIT_POS_PLANE == 0 {
            shared[PLANE_POS as usize] = value;
        }
        sync_cube();
        let mut most = shared[0];
        #[unroll]
        for plane in 1..planes {
            most = max(most, shared[plane as usize]);
        }
        most
    }
}
