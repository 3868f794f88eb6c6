//! The gated feed-forward unit of a UNet (GEGLU).

use burn_flex::FlexTensor;

use super::{
    loops::build,
    simd::{fill, fill_both, normal},
    tensor::{contiguous, dims, raw_tensor, tensor, values},
};
use crate::kernels::operation::RawTensor;

/// The halves of a row.
#[inline(always)]
fn halves(x: &[f32], row: usize, width: usize) -> (&[f32], &[f32]) {
    x[2 * width * row..][..2 * width].split_at(width)
}

/// `a·gelu(b)` for the halves of each row: `[M, 2·D]` → `[M, D]`.
pub fn forward(x: FlexTensor) -> RawTensor {
    let x = contiguous(x);
    let [rows, width] = dims(&x);
    let (width, x) = (width / 2, values(&x));
    let y = build(
        rows * width,
        width,
        #[inline(always)]
        |row, y| {
            let (a, b) = halves(x, row, width);
            fill(
                y,
                [a, b],
                #[inline(always)]
                |[a, b]| a * b * normal(b).0,
            );
        },
    );
    raw_tensor(tensor(y, [rows, width]))
}

/// `da = g·b·Φ(b)`, `db = g·a·(Φ(b) + b·φ(b))`, side by side: `x` `[M, 2·D]`, `g` `[M, D]` → `[M, 2·D]`.
pub fn backward(both: [FlexTensor; 2]) -> RawTensor {
    let [x, g] = both.map(contiguous);
    let shape @ [rows, width] = dims(&x);
    let (width, x, g) = (width / 2, values(&x), values(&g));
    let dx = build(
        rows * 2 * width,
        2 * width,
        #[inline(always)]
        |row, dx| {
            let (a, b) = halves(x, row, width);
            let g = &g[row * width..][..width];
            let (da, db) = dx.split_at_mut(width);
            fill_both(
                [da, db],
                [a, b, g],
                #[inline(always)]
                |[a, b, g]| {
                    let (distribution, density) = normal(b);
                    [g * b * distribution, g * a * b.mul_add(density, distribution)]
                },
            );
        },
    );
    raw_tensor(tensor(dx, shape))
}
