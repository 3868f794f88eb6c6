//! The gated residual of a modulated transformer block.

use burn::tensor::{FloatDType, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu::{self, Rows},
    operation::{Operation, Plain, apply},
    simd::{fill, update},
    tokens::{build_tokens, per_token, sum_tokens},
};

/// `x + gate·y`, the gated residual of a modulated block.
///
/// `x` and `y` `[B, L, D]`, `gate` `[B, D]` → `[B, L, D]`.
pub fn gated_add(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    apply(GatedAdd, [x.into_dispatch(), gate.into_dispatch(), y.into_dispatch()])
}

#[derive(Clone, Debug)]
struct GatedAdd;

impl Operation<3> for GatedAdd {
    /// `gate`, `y`.
    type Saved = [Plain; 2];

    fn forward(&self, [x, gate, y]: [Plain; 3]) -> (Plain, Self::Saved) {
        let saved = [gate.clone(), y.clone()];
        let output = match cpu::floats([x, gate, y]) {
            Ok(all) => {
                let [x, gate, y] = all.map(cpu::in_rows);
                let [batch, tokens, width] = cpu::dims(&x);
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
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => cuda::residual::forward(all),
            Err([x, gate, y]) => {
                let [x, y]: [Tensor<3>; 2] = [x, y].map(Tensor::from_dispatch);
                (x + y * per_token(Tensor::from_dispatch(gate))).into_dispatch()
            }
        };
        (output, saved)
    }

    fn backward(self, [gate, y]: Self::Saved, gradient: Plain, wanted: [bool; 3]) -> [Option<Plain>; 3] {
        let [wants_x, wants_gate, wants_y] = wanted;
        let dx = wants_x.then(|| gradient.clone());
        match cpu::floats([gate, y, gradient]) {
            Ok(all) => {
                let [gate, y, g] = all.map(cpu::in_rows);
                let [batch, tokens, width] = cpu::dims(&y);
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
                [dx, dgate, dy]
            }
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => {
                let [dgate, dy] = cuda::residual::backward(all, wants_gate, wants_y);
                [dx, dgate, dy]
            }
            Err([gate, y, g]) => {
                let [y, g]: [Tensor<3>; 2] = [y, g].map(Tensor::from_dispatch);
                let gate = per_token(Tensor::from_dispatch(gate));
                let dtype: FloatDType = y.dtype().into();
                let dgate = wants_gate.then(|| {
                    let product = g.clone().cast(FloatDType::F32) * y.cast(FloatDType::F32);
                    product.sum_dim(1).squeeze_dim::<2>(1).cast(dtype).into_dispatch()
                });
                [dx, dgate, wants_y.then(|| (g * gate).into_dispatch())]
            }
        }
    }
}
