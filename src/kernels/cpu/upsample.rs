//! Upsampling of images by two.

use burn_flex::FlexTensor;

use super::{
    loops::build,
    tensor::{dims, in_order, numbers, plain, tensor},
};
use crate::kernels::operation::Plain;

/// Nearest-neighbor upsampling by two.
pub fn forward(x: FlexTensor) -> Plain {
    let x = in_order(x);
    let [batch, channels, height, width] = dims(&x);
    let numbers = numbers(&x);
    let y = build(
        4 * numbers.len(),
        4 * width,
        #[inline(always)]
        |row, lines| {
            let x = &numbers[row * width..][..width];
            for line in lines.chunks_exact_mut(2 * width) {
                for (pair, x) in line.chunks_exact_mut(2).zip(x) {
                    pair[0].write(*x);
                    pair[1].write(*x);
                }
            }
        },
    );
    plain(tensor(y, [batch, channels, 2 * height, 2 * width]))
}

/// The sum of each square of four pixels.
pub fn backward(g: FlexTensor) -> Plain {
    let g = in_order(g);
    let [batch, channels, height, width] = dims(&g);
    let numbers = numbers(&g);
    let dx = build(
        numbers.len() / 4,
        width / 2,
        #[inline(always)]
        |row, dx| {
            let (first, second) = numbers[row * 2 * width..][..2 * width].split_at(width);
            for ((dx, a), b) in dx.iter_mut().zip(first.chunks_exact(2)).zip(second.chunks_exact(2)) {
                dx.write((a[0] + a[1]) + (b[0] + b[1]));
            }
        },
    );
    plain(tensor(dx, [batch, channels, height / 2, width / 2]))
}
