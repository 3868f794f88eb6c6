//! Attention in f32 on the CPU: each head on one core, a few rows of scores at a time.

use burn::tensor::Shape;
use burn_flex::{FlexTensor, Layout};
use gemm::Parallelism;
use rayon::prelude::*;

use super::{
    gemm::{Onto, Target, product, transposed},
    matrix::Matrix,
    rows::Rows,
    simd::{exp, max, sum, update, vectorized},
    tensor::{as_cpu_f32, dims, in_rows, raw_tensor, strided},
};
use crate::kernels::operation::RawTensor;

/// The number of queries per head whose scores exist at a time.
const TILE: usize = 64;

/// What the backward pass needs besides the inputs.
#[derive(Clone, Debug)]
pub struct Saved {
    output: RawTensor,
    /// `ln Σ exp(score)` of every query, `[B·N·L]`.
    log_sums: Vec<f32>,
}

/// The output, in memory `[B, L, N, K]`, and what the backward pass needs of it.
pub fn forward(inputs: [FlexTensor; 3]) -> (RawTensor, Saved) {
    let [q, k, v] = inputs.map(in_rows);
    let shape = dims(&q);
    let [_, _, keys, _] = dims::<4>(&k);
    let (output, log_sums) = attend(shape, keys, Rows::new(&q), Rows::new(&k), Rows::new(&v));
    let output = tokens_first(output, shape);
    (output.clone(), Saved { output, log_sums })
}

/// The gradients of q, k and v from these and the gradient of the output.
pub fn backward([q, k, v, g]: [RawTensor; 4], Saved { output, log_sums }: Saved) -> [RawTensor; 3] {
    let Ok(all) = as_cpu_f32([q, k, v, output, g]) else {
        unreachable!("what was f32 on the CPU has gradients that are");
    };
    let [q, k, v, output, g] = all.map(in_rows);
    let shape @ [batch, heads, _, width] = dims(&q);
    let [_, _, keys, _] = dims::<4>(&k);
    let rows = [&q, &k, &v, &output, &g].map(Rows::new);
    let [dq, dk, dv] = gradients(shape, keys, rows, &log_sums);
    let key_shape = [batch, heads, keys, width];
    [tokens_first(dq, shape), tokens_first(dk, key_shape), tokens_first(dv, key_shape)]
}

/// A tensor `[B, N, L, K]` stored as `[B, L, N, K]`: the model joins the heads of each token next, which is then free.
fn tokens_first(data: Vec<f32>, shape: [usize; 4]) -> RawTensor {
    let [_, heads, tokens, width] = shape;
    let strides = [tokens * heads * width, width, heads * width, 1].map(|s| s as isize).to_vec();
    raw_tensor(strided(data, Layout::new(Shape::from(shape), strides, 0)))
}

/// Memory `[B, L, N, K]` that threads fill in parallel, each the rows of its own heads.
#[derive(Clone, Copy)]
struct Heads {
    data: *mut f32,
    tokens: usize,
    heads: usize,
    width: usize,
}

// SAFETY: a pointer to f32s; its users guarantee that no two threads access the same ones.
unsafe impl Send for Heads {}
// SAFETY: as above.
unsafe impl Sync for Heads {}

impl Heads {
    /// `data` must have room for `[batch, tokens, heads, width]`.
    fn new(data: &mut Vec<f32>, [batch, heads, tokens, width]: [usize; 4]) -> Self {
        data.reserve_exact(batch * tokens * heads * width);
        Self { data: data.as_mut_ptr(), tokens, heads, width }
    }

    /// The rows of one head of one sample from `token` on.
    ///
    /// # Safety
    /// The indices are inside the shape, and no other thread uses the same head of the same sample.
    unsafe fn rows(&self, batch: usize, head: usize, token: usize) -> Target {
        let start = ((batch * self.tokens + token) * self.heads + head) * self.width;
        // SAFETY: inside the memory, as guaranteed by the caller.
        Target { data: unsafe { self.data.add(start) }, stride: self.heads * self.width }
    }
}

/// The output, `[B, L, N, K]`, and the log-sums.
fn attend(shape: [usize; 4], keys: usize, q: Rows, k: Rows, v: Rows) -> (Vec<f32>, Vec<f32>) {
    let [batch, heads, queries, width] = shape;
    let mut output = Vec::new();
    let place = Heads::new(&mut output, shape);
    let mut log_sums = vec![0.0; batch * heads * queries];
    let scale = 1.0 / (width as f32).sqrt();
    let head = |(head, log_sums): (usize, &mut [f32])| {
        let (b, n) = (head / heads, head % heads);
        let q = q.matrix(b, n, queries);
        let (k, v) = (transposed(k.matrix(b, n, keys)), copied(v, b, n, keys));
        let (k, v) = (Matrix::new(&k, width, keys), Matrix::new(&v, keys, width));
        let mut scores = vec![0.0; TILE.min(queries) * keys];
        let mut inverse = [0.0; TILE];
        for start in (0..queries).step_by(TILE) {
            let rows = TILE.min(queries - start);
            let scores = &mut scores[..rows * keys];
            let q = q.rows(start, rows);
            // SAFETY: the scores are borrowed mutably and have the size of the product.
            unsafe { product(Target::new(scores, keys), Onto::Nothing, scale, q, k, Parallelism::None) };
            vectorized(
                #[inline(always)]
                || {
                    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                        let most = max(scores);
                        update(
                            scores,
                            [],
                            #[inline(always)]
                            |score, []| exp(score - most),
                        );
                        let total = sum(
                            [scores],
                            #[inline(always)]
                            |[p]| p,
                        );
                        inverse[row] = 1.0 / total;
                        log_sums[start + row] = most + total.ln();
                    }
                },
            );
            let p = Matrix::new(scores, rows, keys);
            // SAFETY: only this thread has this head of this sample; its rows lie in the memory of the output, which
            // outlives this scope, and the product initializes them before they are read.
            unsafe {
                let place = place.rows(b, n, start);
                let (data, stride) = (place.data, place.stride);
                product(place, Onto::Nothing, 1.0, p, v, Parallelism::None);
                for (row, inverse) in inverse[..rows].iter().enumerate() {
                    let row = std::slice::from_raw_parts_mut(data.add(row * stride), width);
                    row.iter_mut().for_each(|value| *value *= inverse);
                }
            }
        }
    };
    log_sums.par_chunks_mut(queries.max(1)).enumerate().for_each(head);
    // SAFETY: every row of every head was written.
    unsafe { output.set_len(batch * queries * heads * width) };
    (output, log_sums)
}

/// The gradients of q, k and v, `[B, L, N, K]` and `[B, S, N, K]`, head by head: with `p = exp(score - log-sum)`,
/// `dv = pᵀ·g`, `ds = p∘(g·vᵀ - Σ g∘output)`, `dq = ds·k/√K`, `dk = dsᵀ·q/√K`.
fn gradients(shape: [usize; 4], keys: usize, [q, k, v, output, g]: [Rows; 5], log_sums: &[f32]) -> [Vec<f32>; 3] {
    let [batch, heads, queries, width] = shape;
    let key_shape = [batch, heads, keys, width];
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    let (to_q, to_k, to_v) =
        (Heads::new(&mut dq, shape), Heads::new(&mut dk, key_shape), Heads::new(&mut dv, key_shape));
    let scale = 1.0 / (width as f32).sqrt();
    let head = |head: usize| {
        let (b, n) = (head / heads, head % heads);
        let log_sums = &log_sums[head * queries..][..queries];
        let k = k.matrix(b, n, keys);
        // The products need the transposes.
        let (kt, vt) = (transposed(k), transposed(v.matrix(b, n, keys)));
        let (kt, vt) = (Matrix::new(&kt, width, keys), Matrix::new(&vt, width, keys));
        let mut tiles = [vec![0.0; TILE.min(queries) * keys], vec![0.0; TILE.min(queries) * keys]];
        for start in (0..queries).step_by(TILE) {
            let rows = TILE.min(queries - start);
            let [p, ds] = tiles.each_mut().map(|tile| &mut tile[..rows * keys]);
            let (q, dy) = (q.matrix(b, n, queries).rows(start, rows), g.matrix(b, n, queries).rows(start, rows));
            // SAFETY: both tiles are borrowed mutably and have the size of the products.
            unsafe {
                product(Target::new(p, keys), Onto::Nothing, scale, q, kt, Parallelism::None);
                product(Target::new(ds, keys), Onto::Nothing, 1.0, dy, vt, Parallelism::None);
            }
            vectorized(
                #[inline(always)]
                || {
                    for (row, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
                        let (at, log_sum) = ([b, n, start + row], log_sums[start + row]);
                        let level = sum(
                            [g.row(at), output.row(at)],
                            #[inline(always)]
                            |[g, y]| g * y,
                        );
                        update(
                            p,
                            [],
                            #[inline(always)]
                            |score, []| exp(score - log_sum),
                        );
                        update(
                            ds,
                            [p],
                            #[inline(always)]
                            |dp, [p]| p * (dp - level),
                        );
                    }
                },
            );
            let (p, ds) = (Matrix::new(p, rows, keys), Matrix::new(ds, rows, keys));
            let onto = if start == 0 { Onto::Nothing } else { Onto::Sum };
            // SAFETY: only this thread has this head of this sample; the first tile initializes what later ones add to.
            unsafe {
                product(to_v.rows(b, n, 0), onto, 1.0, p.t(), dy, Parallelism::None);
                product(to_k.rows(b, n, 0), onto, scale, ds.t(), q, Parallelism::None);
                product(to_q.rows(b, n, start), Onto::Nothing, scale, ds, k, Parallelism::None);
            }
        }
    };
    (0..batch * heads).into_par_iter().for_each(head);
    // SAFETY: every row of every head was written, provided there was a query to write the gradients of the keys from.
    unsafe {
        dq.set_len(batch * heads * queries * width);
        dk.set_len(batch * heads * keys * width);
        dv.set_len(batch * heads * keys * width);
    }
    [dq, dk, dv]
}

/// A copy of one head, `[S, K]`, row-major.
fn copied(rows: Rows, b: usize, n: usize, tokens: usize) -> Vec<f32> {
    (0..tokens).flat_map(|token| rows.row([b, n, token])).copied().collect()
}
