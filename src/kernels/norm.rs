//! Normalisation over the last axis, with weights of its own or modulated. All statistics are computed in f32.

use burn::tensor::{FloatDType, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu::{self, Rows},
    operation::{Operation, Plain, apply},
    simd::{fill, sum, update},
    tokens::{build_tokens, per_token, sum_tokens},
};

/// `LayerNorm(x)·(1 + scale) + shift`, the norm without weights of its own (AdaLN, Peebles & Xie 2022).
///
/// `x` `[B, L, D]`, `shift` and `scale` `[B, D]` → `[B, L, D]`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, epsilon: f64) -> Tensor<3> {
    apply(LayerNorm { epsilon, base: 1.0 }, [x.into_dispatch(), shift.into_dispatch(), scale.into_dispatch()])
}

/// `(x − mean)/√(variance + ε)·weight + bias` over the last axis (Ba et al. 2016).
///
/// `x` `[…, D]`, `weight` and `bias` `[D]` → `[…, D]`; all that is on a tape gets a gradient.
pub fn layer_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<N> {
    let shape = x.dims();
    let width = shape[N - 1];
    let rows = x.reshape([1, shape[..N - 1].iter().product(), width]);
    let [bias, weight] = [bias, weight].map(|t| t.reshape([1, width]).into_dispatch());
    apply::<3, 3>(LayerNorm { epsilon, base: 0.0 }, [rows.into_dispatch(), bias, weight]).reshape(shape)
}

/// `(x - mean)/deviation` over the last axis, and `1/deviation`, in f32.
fn standardize(x: Tensor<3>, epsilon: f64) -> (Tensor<3>, Tensor<3>) {
    let x = x.cast(FloatDType::F32);
    let centred = x.clone() - x.mean_dim(2);
    let inverse = (centred.clone().square().mean_dim(2) + epsilon).sqrt().recip();
    (centred * inverse.clone(), inverse)
}

/// The mean of a row and 1 over its deviation.
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

/// `standardized(x)·(base + scale) + shift`.
#[derive(Clone, Debug)]
struct LayerNorm {
    epsilon: f64,
    /// 1 for a modulation, 0 for a weight.
    base: f32,
}

impl Operation<3> for LayerNorm {
    /// `x`, `scale`, and `[B·L, 2]` with the mean of each row and 1 over its deviation; where the operation is composed,
    /// in place of these something that exists.
    type Saved = [Plain; 3];

    fn forward(&self, [x, shift, scale]: [Plain; 3]) -> (Plain, Self::Saved) {
        let saved = [x.clone(), scale.clone()];
        let (output, statistics) = match cpu::floats([x, shift, scale]) {
            Ok([x, shift, scale]) => {
                let (x, shift, scale) = (cpu::in_rows(x), cpu::in_rows(shift), cpu::in_rows(scale));
                let shape @ [batch, tokens, width] = cpu::dims(&x);
                let (x, shift, scale) = (Rows::new(&x), Rows::new(&shift), Rows::new(&scale));
                let (y, statistics) = cpu::build_noting(
                    batch * tokens * width,
                    width,
                    #[inline(always)]
                    |row, y| {
                        let (b, token) = (row / tokens, row % tokens);
                        let x = x.row([0, b, token]);
                        let (mean, inverse) = statistics(x, self.epsilon as f32);
                        fill(
                            y,
                            [x, scale.row([0, 0, b]), shift.row([0, 0, b])],
                            #[inline(always)]
                            |[x, scale, shift]| ((x - mean) * inverse).mul_add(self.base + scale, shift),
                        );
                        [mean, inverse]
                    },
                );
                let statistics = cpu::tensor(statistics.into_flattened(), [batch * tokens, 2]);
                (cpu::plain(cpu::tensor(y, shape)), cpu::plain(statistics))
            }
            #[cfg(feature = "cuda")]
            Err(inputs) if cuda::takes(&inputs) => cuda::norm::forward(inputs, self.base, self.epsilon),
            Err([x, shift, scale]) => {
                let x = Tensor::from_dispatch(x);
                let [shift, scale] = [shift, scale].map(|t| per_token(Tensor::from_dispatch(t)));
                let dtype: FloatDType = x.dtype().into();
                let normed = standardize(x, self.epsilon).0;
                // Rounded to the dtype where torch does it: after the norm, with the norm's own weights.
                let output = if self.base == 0.0 {
                    let [scale, shift] = [scale, shift].map(|t| t.cast(FloatDType::F32));
                    (normed * scale + shift).cast(dtype)
                } else {
                    normed.cast(dtype) * (scale + self.base) + shift
                };
                (output.into_dispatch(), saved[0].clone())
            }
        };
        let [x, scale] = saved;
        (output, [x, scale, statistics])
    }

    fn backward(self, [x, scale, statistics]: Self::Saved, gradient: Plain, wanted: [bool; 3]) -> [Option<Plain>; 3] {
        let [wants_x, wants_shift, wants_scale] = wanted;
        match cpu::floats([x, scale, gradient, statistics]) {
            Ok(all) => {
                let [x, scale, g, statistics] = all.map(cpu::in_rows);
                let (statistics, _) = cpu::numbers(&statistics).as_chunks::<2>();
                let [batch, tokens, width] = cpu::dims(&x);
                let (x, scale, g) = (Rows::new(&x), Rows::new(&scale), Rows::new(&g));
                let base = self.base;
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
                // Both in one pass, side by side.
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
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => cuda::norm::backward(all, self.base, wanted),
            Err([x, scale, g, _]) => {
                let [x, g]: [Tensor<3>; 2] = [x, g].map(Tensor::from_dispatch);
                let scale = Tensor::<2>::from_dispatch(scale);
                let dtype: FloatDType = x.dtype().into();
                let (normed, inverse) = standardize(x, self.epsilon);
                let g = g.cast(FloatDType::F32);
                let over_tokens = |t: Tensor<3>| t.sum_dim(1).squeeze_dim::<2>(1).cast(dtype).into_dispatch();
                let dscale = wants_scale.then(|| over_tokens(g.clone() * normed.clone()));
                let dshift = wants_shift.then(|| over_tokens(g.clone()));
                let dx = wants_x.then(|| {
                    let d = g * (per_token(scale).cast(FloatDType::F32) + self.base);
                    let slope = (d.clone() * normed.clone()).mean_dim(2);
                    ((d.clone() - d.mean_dim(2) - normed * slope) * inverse).cast(dtype).into_dispatch()
                });
                [dx, dshift, dscale]
            }
        }
    }
}
