//! Upsampling of images by two.

use burn_flex::FlexTensor;

use super::{
    loops::build,
    tensor::{contiguous, dims, raw_tensor, tensor, values},
};
use crate::kernels::operation::RawTensor;

/// Nearest-neighbor upsampling by two.
pub fn forward(x: FlexTensor) -> RawTensor {
    let x = contiguous(x);
    let [batch, channels, height, width] = dims(&x);
    let values = values(&x);
    let y = build(
        4 * values.len(),
        4 * width,
        #[inline(always)]
        |row, lines| {
            let x = &values[row * width..][..width];
            for line in lines.chunks_exact_mut(2 * width) {
                for (pair, x) in line.chunks_exact_mut(2).zip(x) {
                    pair[0].write(*x);
                    pair[1].write(*x);
                }
            }
        },
    );
    raw_tensor(tensor(y, [batch, channels, 2 * height, 2 * width]))
}

/// The sum of each square of four pixels.
pub fn backward(g: FlexTensor) -> RawTensor {
    let g = contiguous(g);
    let [batch, channels, height, width] = dims(&g);
    let values = values(&g);
    let dx = build(
        values.len() / 4,
        width / 2,
        #[inline(always)]
        |row, dx| {
            let (first, second) = values[row * 2 * width..][..2 * width].split_at(width);
            for ((dx, a), b) in dx.iter_mut().zip(first.chunks_exact(2)).zip(second.chunks_exact(2)) {
                dx.write((a[0] + a[1]) + (b[0] + b[1]));
            }
        },
    );
    raw_tensor(tensor(dx, [batch, channels, height / 2, width / 2]))
}
