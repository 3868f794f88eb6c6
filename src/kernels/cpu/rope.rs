//! RMS norm per head and rotary position embedding.

use burn_flex::FlexTensor;

use super::{
    loops::{build, column_sums},
    rows::Rows,
    simd::{fill, sum, update},
    tensor::{dims, in_rows, raw_tensor, tensor},
};
use crate::kernels::operation::RawTensor;

/// The reciprocal root mean square.
#[inline(always)]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    let squares = sum(
        [x],
        #[inline(always)]
        |[x]| x * x,
    );
    1.0 / (squares / x.len() as f32 + epsilon).sqrt()
}

/// Rotates each pair of elements by its angle.
#[inline(always)]
fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = row.as_chunks_mut::<2>();
    for ((pair, cos), sin) in pairs.iter_mut().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0) {
        let [re, im] = *pair;
        *pair = [re * cos[0] - im * sin[0], im * cos[1] + re * sin[1]];
    }
}

/// Rotates each pair back: the transpose of [`rotate`].
#[inline(always)]
fn rotate_back(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = row.as_chunks_mut::<2>();
    for ((pair, cos), sin) in pairs.iter_mut().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0) {
        let [re, im] = *pair;
        *pair = [re * cos[0] + im * sin[1], im * cos[1] - re * sin[0]];
    }
}

/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` → `[B, N, L, K]`.
pub fn forward(all: [FlexTensor; 4], epsilon: f64) -> RawTensor {
    let [x, weight, cos, sin] = all.map(in_rows);
    let [batch, tokens, heads, width] = dims(&x);
    let (x, weight, cos, sin) = (Rows::new(&x), Rows::new(&weight), Rows::new(&cos), Rows::new(&sin));
    let weight = weight.row([0; 3]);
    let y = build(
        batch * heads * tokens * width,
        width,
        #[inline(always)]
        |row, y| {
            let (b, head, token) = (row / (tokens * heads), row / tokens % heads, row % tokens);
            let x = x.row([b, token, head]);
            let inverse = inverse_root(x, epsilon as f32);
            let y = fill(
                y,
                [x, weight],
                #[inline(always)]
                |[x, weight]| x * inverse * weight,
            );
            rotate(y, cos.row([0, 0, token]), sin.row([0, 0, token]));
        },
    );
    raw_tensor(tensor(y, [batch, heads, tokens, width]))
}

/// The gradient of `x`, from `x`, the gradient `[B, N, L, K]` of the output, `weight`, `cos` and `sin`.
pub fn input_gradient(all: [FlexTensor; 5], epsilon: f64) -> RawTensor {
    let [x, g, weight, cos, sin] = all.map(in_rows);
    let [batch, tokens, heads, width] = dims(&x);
    let (x, g, weight) = (Rows::new(&x), Rows::new(&g), Rows::new(&weight));
    let (cos, sin, weight) = (Rows::new(&cos), Rows::new(&sin), weight.row([0; 3]));
    let dx = build(
        batch * tokens * heads * width,
        width,
        #[inline(always)]
        |row, dx| {
            let (b, token, head) = (row / (tokens * heads), row / heads % tokens, row % heads);
            let x = x.row([b, token, head]);
            let inverse = inverse_root(x, epsilon as f32);
            let dx = fill(
                dx,
                [g.row([b, head, token])],
                #[inline(always)]
                |[g]| g,
            );
            rotate_back(dx, cos.row([0, 0, token]), sin.row([0, 0, token]));
            update(
                dx,
                [weight],
                #[inline(always)]
                |dx, [weight]| dx * weight,
            );
            let slope = sum(
                [dx, x],
                #[inline(always)]
                |[dx, x]| dx * x,
            ) * (inverse * inverse / width as f32);
            update(
                dx,
                [x],
                #[inline(always)]
                |dx, [x]| inverse * (dx - x * slope),
            );
        },
    );
    raw_tensor(tensor(dx, [batch, tokens, heads, width]))
}

/// The gradient of `weight`, from `x`, the gradient `[B, N, L, K]` of the output, `cos` and `sin`.
pub fn weight_gradient(all: [FlexTensor; 4], epsilon: f64) -> RawTensor {
    let [x, g, cos, sin] = all.map(in_rows);
    let [batch, tokens, heads, width] = dims(&x);
    let (x, g, cos, sin) = (Rows::new(&x), Rows::new(&g), Rows::new(&cos), Rows::new(&sin));
    let sums = column_sums(
        batch * tokens * heads,
        width,
        #[inline(always)]
        |row, sums| {
            let (b, token, head) = (row / (tokens * heads), row / heads % tokens, row % heads);
            let x = x.row([b, token, head]);
            let inverse = inverse_root(x, epsilon as f32);
            let (g, cos, sin) = (g.row([b, head, token]), cos.row([0, 0, token]), sin.row([0, 0, token]));
            let pairs = g.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0);
            let angles = cos.as_chunks::<2>().0.iter().zip(sin.as_chunks::<2>().0);
            for ((sum, (g, x)), (cos, sin)) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs).zip(angles) {
                let [re, im] = *g;
                sum[0] += (re * cos[0] + im * sin[1]) * x[0] * inverse;
                sum[1] += (im * cos[1] - re * sin[0]) * x[1] * inverse;
            }
        },
    );
    raw_tensor(tensor(sums, [width]))
}
