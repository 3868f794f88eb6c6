//! The gated unit of the transformer blocks of a UNet.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::{FloatDType, Tensor, activation};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu,
    operation::{Operation, Plain, apply},
    simd::{fill, fill_both, normal},
};

/// `a·gelu(b)` of the halves `a` and `b` of the last axis, with the exact `gelu(b) = b·Φ(b)` (Shazeer 2020; diffusers'
/// `GEGLU`).
///
/// `[…, 2·D]` → `[…, D]`. The backward pass keeps the input and nothing else.
pub fn geglu<const N: usize>(x: Tensor<N>) -> Tensor<N> {
    let mut shape = x.dims();
    let width = shape[N - 1];
    let rows = x.reshape([shape[..N - 1].iter().product(), width]);
    shape[N - 1] = width / 2;
    apply::<1, 2>(Geglu, [rows.into_dispatch()]).reshape(shape)
}

#[derive(Clone, Debug)]
struct Geglu;

/// The halves of a row.
#[inline(always)]
fn halves(x: &[f32], row: usize, width: usize) -> (&[f32], &[f32]) {
    x[2 * width * row..][..2 * width].split_at(width)
}

impl Operation<1> for Geglu {
    type Saved = Plain;

    fn forward(&self, [x]: [Plain; 1]) -> (Plain, Plain) {
        let output = match cpu::floats([x.clone()]) {
            Ok([x]) => {
                let x = cpu::in_order(x);
                let [rows, width] = cpu::dims(&x);
                let (width, x) = (width / 2, cpu::numbers(&x));
                let y = cpu::build(
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
                cpu::plain(cpu::tensor(y, [rows, width]))
            }
            #[cfg(feature = "cuda")]
            Err(input) if cuda::takes(&input) => cuda::geglu::forward(input),
            Err([x]) => {
                let x = Tensor::<2>::from_dispatch(x);
                let dtype: FloatDType = x.dtype().into();
                let [a, b] = chunked(x);
                (a * activation::gelu(b.cast(FloatDType::F32)).cast(dtype)).into_dispatch()
            }
        };
        (output, x)
    }

    /// `da = g·b·Φ(b)`, `db = g·a·(Φ(b) + b·φ(b))`.
    fn backward(self, x: Plain, gradient: Plain, _: [bool; 1]) -> [Option<Plain>; 1] {
        [Some(match cpu::floats([x, gradient]) {
            Ok(both) => {
                let [x, g] = both.map(cpu::in_order);
                let shape @ [rows, width] = cpu::dims(&x);
                let (width, x, g) = (width / 2, cpu::numbers(&x), cpu::numbers(&g));
                let dx = cpu::build(
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
                cpu::plain(cpu::tensor(dx, shape))
            }
            #[cfg(feature = "cuda")]
            Err(both) if cuda::takes(&both) => cuda::geglu::backward(both),
            Err([x, g]) => {
                let [x, g]: [Tensor<2>; 2] = [x, g].map(Tensor::from_dispatch);
                let dtype: FloatDType = x.dtype().into();
                let [a, b] = chunked(x.cast(FloatDType::F32));
                let g = g.cast(FloatDType::F32);
                let distribution = ((b.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
                let density = (b.clone().square() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
                let da = g.clone() * b.clone() * distribution.clone();
                let db = g * a * (distribution + b * density);
                Tensor::cat(vec![da, db], 1).cast(dtype).into_dispatch()
            }
        })]
    }
}

/// Both halves of the last axis.
fn chunked(x: Tensor<2>) -> [Tensor<2>; 2] {
    let width = x.dims()[1] / 2;
    [0, 1].map(|half| x.clone().narrow(1, half * width, width))
}
