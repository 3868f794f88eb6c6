//! Normalization over the last axis.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    loops::build_noting,
    rows::Rows,
    simd::{fill, sum, update},
    tensor::{dims, in_rows, raw_tensor, tensor, values},
    tokens::{build_tokens, sum_tokens},
};
use crate::kernels::operation::RawTensor;

/// The mean of a row and the reciprocal of its standard deviation.
#[inline(always)]
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(
        [x],
        #[inline(always)]
        |[x]| x,
    ) / n;
    let variance = sum(
        [x],
        #[inline(always)]
        |[x]| (x - mean) * (x - mean),
    ) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// The output, and `[B·L, 2]` with the mean of each row and the reciprocal of its standard deviation.
pub fn forward([x, shift, scale]: [FlexTensor; 3], base: f32, epsilon: f64) -> (RawTensor, RawTensor) {
    let (x, shift, scale) = (in_rows(x), in_rows(shift), in_rows(scale));
    let shape @ [batch, tokens, width] = dims(&x);
    let (x, shift, scale) = (Rows::new(&x), Rows::new(&shift), Rows::new(&scale));
    let (y, statistics) = build_noting(
        batch * tokens * width,
        width,
        #[inline(always)]
        |row, y| {
            let (b, token) = (row / tokens, row % tokens);
            let x = x.row([0, b, token]);
            let (mean, inverse) = statistics(x, epsilon as f32);
            fill(
                y,
                [x, scale.row([0, 0, b]), shift.row([0, 0, b])],
                #[inline(always)]
                |[x, scale, shift]| ((x - mean) * inverse).mul_add(base + scale, shift),
            );
            [mean, inverse]
        },
    );
    let statistics = tensor(statistics.into_flattened(), [batch * tokens, 2]);
    (raw_tensor(tensor(y, shape)), raw_tensor(statistics))
}

/// The `wanted` gradients of `x`, shift and scale, from `x`, scale, the gradient of the output and the statistics.
pub fn backward(
    all: [FlexTensor; 4],
    base: f32,
    [wants_x, wants_shift, wants_scale]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let [x, scale, g, statistics] = all.map(in_rows);
    let (statistics, _) = values(&statistics).as_chunks::<2>();
    let [batch, tokens, width] = dims(&x);
    let (x, scale, g) = (Rows::new(&x), Rows::new(&scale), Rows::new(&g));
    let dx = wants_x.then(|| {
        build_tokens(
            [batch, tokens, width],
            #[inline(always)]
            |b, token, dx| {
                let x = x.row([0, b, token]);
                let [mean, inverse] = statistics[b * tokens + token];
                let dx = fill(
                    dx,
                    [g.row([0, b, token]), scale.row([0, 0, b])],
                    #[inline(always)]
                    |[g, scale]| g * (base + scale),
                );
                let n = width as f32;
                let level = sum(
                    [dx],
                    #[inline(always)]
                    |[dx]| dx,
                ) / n;
                let slope = sum(
                    [dx, x],
                    #[inline(always)]
                    |[dx, x]| dx * (x - mean),
                ) * (inverse * inverse / n);
                update(
                    dx,
                    [x],
                    #[inline(always)]
                    |dx, [x]| inverse * (dx - level - (x - mean) * slope),
                );
            },
        )
    });
    // Both in one pass.
    let sums = (wants_shift || wants_scale).then(|| {
        Tensor::<2>::from_dispatch(sum_tokens(
            [batch, tokens, 2 * width],
            #[inline(always)]
            |b, token, sums| {
                let (g, x) = (g.row([0, b, token]), x.row([0, b, token]));
                let [mean, inverse] = statistics[b * tokens + token];
                let (shift, scale) = sums.split_at_mut(width);
                update(
                    shift,
                    [g],
                    #[inline(always)]
                    |sum, [g]| sum + g,
                );
                update(
                    scale,
                    [g, x],
                    #[inline(always)]
                    |sum, [g, x]| ((x - mean) * inverse).mul_add(g, sum),
                );
            },
        ))
    });
    let half = |wanted: bool, start| {
        let sums = sums.clone().filter(|_| wanted)?;
        Some(sums.narrow(1, start, width).into_dispatch())
    };
    let (dshift, dscale) = (half(wants_shift, 0), half(wants_scale, width));
    [dx, dshift, dscale]
}
