//! The gated feed-forward unit of a UNet (GEGLU).

use burn_flex::FlexTensor;

use super::{
    loops::build,
    simd::{fill, fill_both, normal},
    tensor::{dims, in_order, numbers, plain, tensor},
};
use crate::kernels::operation::Plain;

/// The halves of a row.
#[inline(always)]
fn halves(x: &[f32], row: usize, width: usize) -> (&[f32], &[f32]) {
    x[2 * width * row..][..2 * width].split_at(width)
}

/// `a·gelu(b)` for the halves of each row: `[M, 2·D]` → `[M, D]`.
pub fn forward(x: FlexTensor) -> Plain {
    let x = in_order(x);
    let [rows, width] = dims(&x);
    let (width, x) = (width / 2, numbers(&x));
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
    plain(tensor(y, [rows, width]))
}

/// `da = g·b·Φ(b)`, `db = g·a·(Φ(b) + b·φ(b))`, side by side: `x` `[M, 2·D]`, `g` `[M, D]` → `[M, 2·D]`.
pub fn backward(both: [FlexTensor; 2]) -> Plain {
    let [x, g] = both.map(in_order);
    let shape @ [rows, width] = dims(&x);
    let (width, x, g) = (width / 2, numbers(&x), numbers(&g));
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
    plain(tensor(dx, shape))
}
