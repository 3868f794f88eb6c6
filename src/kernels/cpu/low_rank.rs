//! LoRA adapters applied to the outputs of their layers.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{
    gemm::{add_matmul, matmul, transposed},
    matrix::Matrix,
    tensor::{as_cpu_f32, contiguous, dims, exclusive, raw_tensor, tensor, values},
};
use crate::kernels::{formulas::Factors, operation::RawTensor};

/// `y + scale·(x·Aᵀ)·Bᵀ` for `y` `[M, out]`, `x` `[M, in]`, `A` `[rank, in]` and `B` `[out, rank]`; and what the
/// [backward pass](backward) needs: `x`, `x·Aᵀ`, `A` and `B`.
pub fn forward(inputs: [FlexTensor; 4], scale: f64) -> (RawTensor, [RawTensor; 4]) {
    let [mut y, x, a, b] = inputs.map(contiguous);
    let (xm, am, bm) = (Matrix::of(&x), Matrix::of(&a), Matrix::of(&b));
    let (rows, rank) = (xm.rows, am.rows);
    let u = matmul(xm, am.t(), 1.0);
    // In place if nothing else holds `y`, otherwise on a copy.
    y = exclusive(y);
    add_matmul(y.storage_mut(), Matrix::new(&u, rows, rank), bm.t(), scale as f32);
    (raw_tensor(y), [x, tensor(u, [rows, rank]), a, b].map(raw_tensor))
}

/// The `wanted` gradients of `x`, `A` and `B`, from that of the output and what [`forward`] saved.
pub fn backward(all: [FlexTensor; 5], scale: f64, [wants_x, wants_a, wants_b]: [bool; 3]) -> [Option<RawTensor>; 3] {
    let [g, x, u, a, b] = all.map(contiguous);
    let [g, x, u, a, b] = [&g, &x, &u, &a, &b].map(Matrix::of);
    let scale = scale as f32;
    let du = if wants_x || wants_a { matmul(g, b, scale) } else { Vec::new() };
    let du = Matrix::new(&du, g.rows, b.columns);
    let product = |a: Matrix, b: Matrix, scale| raw_tensor(tensor(matmul(a, b, scale), [a.rows, b.columns]));
    [
        wants_x.then(|| product(du, a, 1.0)),
        wants_a.then(|| product(du.t(), x, 1.0)),
        // The narrow product is faster; its transpose is small.
        wants_b.then(|| {
            let turned = matmul(u.t(), g, scale);
            let db = transposed(Matrix::new(&turned, u.columns, g.columns));
            raw_tensor(tensor(db, [g.columns, u.columns]))
        }),
    ]
}

/// `y + Σ scale·(x·Aᵀ)·Bᵀ` with separate factors for each of `samples` samples, which have equally many rows.
pub fn by_sample([y, x]: [FlexTensor; 2], samples: usize, each: &[Vec<Factors<'_>>]) -> RawTensor {
    let factors = each[..samples.min(each.len())].iter().map(|each| each.iter().map(here).collect());
    let factors: Vec<Vec<_>> = factors.collect();
    let (mut y, x) = (exclusive(y), contiguous(x));
    let ([_, outputs], [rows, inputs]) = (dims(&y), dims(&x));
    let rows = rows / samples;
    let places = y.storage_mut().par_chunks_mut((rows * outputs).max(1));
    let places = places.zip(values(&x).par_chunks((rows * inputs).max(1))).enumerate();
    places.for_each(|(sample, (y, x))| {
        for (a, b, scale) in &factors[sample % factors.len()] {
            let (a, b) = (Matrix::of(a), Matrix::of(b));
            let u = matmul(Matrix::new(x, rows, inputs), a.t(), 1.0);
            add_matmul(y, Matrix::new(&u, rows, a.rows), b.t(), *scale);
        }
    });
    raw_tensor(y)
}

/// The factors as tensors of the CPU backend.
fn here(factors: &Factors<'_>) -> (FlexTensor, FlexTensor, f32) {
    let [a, b] = [factors.a, factors.b].map(|factor| match as_cpu_f32([factor.clone().into_dispatch()]) {
        Ok([factor]) => contiguous(factor),
        Err(_) => panic!("the factors of an adapter are f32, and where its layer is"),
    });
    (a, b, factors.scale as f32)
}
