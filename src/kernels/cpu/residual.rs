//! The gated residual.

use burn_flex::FlexTensor;

use super::{
    rows::Rows,
    simd::{fill, update},
    tensor::{dims, in_rows},
    tokens::{build_tokens, sum_tokens},
};
use crate::kernels::operation::RawTensor;

/// `x + gate·y`.
pub fn forward(all: [FlexTensor; 3]) -> RawTensor {
    let [x, gate, y] = all.map(in_rows);
    let [batch, tokens, width] = dims(&x);
    let (x, gate, y) = (Rows::new(&x), Rows::new(&gate), Rows::new(&y));

    build_tokens(
        [batch, tokens, width],
        #[inline(always)]
        |b, token, sum| {
            fill(
                sum,
                [x.row([0, b, token]), gate.row([0, 0, b]), y.row([0, b, token])],
                #[inline(always)]
                |[x, gate, y]| gate.mul_add(y, x),
            );
        },
    )
}

/// The wanted gradients of `gate` and `y`, from `gate`, `y` and the gradient of the output.
pub fn backward(all: [FlexTensor; 3], wants_gate: bool, wants_y: bool) -> [Option<RawTensor>; 2] {
    let [gate, y, g] = all.map(in_rows);
    let [batch, tokens, width] = dims(&y);
    let (gate, y, g) = (Rows::new(&gate), Rows::new(&y), Rows::new(&g));
    let dgate = wants_gate.then(|| {
        sum_tokens(
            [batch, tokens, width],
            #[inline(always)]
            |b, token, sums| {
                update(
                    sums,
                    [g.row([0, b, token]), y.row([0, b, token])],
                    #[inline(always)]
                    |sum, [g, y]| g.mul_add(y, sum),
                )
            },
        )
    });
    let dy = wants_y.then(|| {
        build_tokens(
            [batch, tokens, width],
            #[inline(always)]
            |b, token, dy| {
                fill(
                    dy,
                    [g.row([0, b, token]), gate.row([0, 0, b])],
                    #[inline(always)]
                    |[g, gate]| g * gate,
                );
            },
        )
    });
    [dgate, dy]
}
