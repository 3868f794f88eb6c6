//! What happens to queries and keys before attention: norm per head, rotation by position.

use burn::tensor::{FloatDType, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu::{self, Rows},
    operation::{Operation, Plain, apply, constant},
    simd::{fill, sum, update},
};

/// Root-mean-square norm over each head with a learned weight, then rotation by position, then heads before tokens.
///
/// `x` `[B, L, N, K]`, `weight` `[K]`, `cos` and `sin` `[L, K]` with each angle twice in a row → `[B, N, L, K]`. Neighbours
/// `(2i, 2i+1)` of the last axis are the real and imaginary part of one rotated number (RoFormer, Su et al. 2021).
/// `x` and `weight` get gradients.
pub fn rms_norm_rope(x: Tensor<4>, weight: Tensor<1>, cos: Tensor<2>, sin: Tensor<2>, epsilon: f64) -> Tensor<4> {
    assert!(x.dims()[3].is_multiple_of(2), "the numbers of a head are rotated in pairs");
    let [cos, sin] = [constant(cos), constant(sin)].map(Tensor::into_dispatch);
    apply(RmsNormRope { cos, sin, epsilon }, [x.into_dispatch(), weight.into_dispatch()])
}

#[derive(Clone, Debug)]
struct RmsNormRope {
    cos: Plain,
    sin: Plain,
    epsilon: f64,
}

/// 1 over the root of the mean square.
#[inline(always)]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    let squares = sum(
        [x],
        #[inline(always)]
        |[x]| x * x,
    );
    1.0 / (squares / x.len() as f32 + epsilon).sqrt()
}

/// Turns each pair of numbers by its angle.
#[inline(always)]
fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = row.as_chunks_mut::<2>();
    for ((pair, cos), sin) in pairs.iter_mut().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0) {
        let [re, im] = *pair;
        *pair = [re * cos[0] - im * sin[0], im * cos[1] + re * sin[1]];
    }
}

/// Turns each pair back: the transpose of [`rotate`].
#[inline(always)]
fn rotate_back(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = row.as_chunks_mut::<2>();
    for ((pair, cos), sin) in pairs.iter_mut().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0) {
        let [re, im] = *pair;
        *pair = [re * cos[0] + im * sin[1], im * cos[1] - re * sin[0]];
    }
}

impl RmsNormRope {
    /// `x` in f32, 1 over the root of its mean square, and the constants as `[1, L, 1, K]` or `[1, 1, 1, K]`.
    fn composed(&self, x: Tensor<4>, weight: Plain) -> (Tensor<4>, Tensor<4>, [Tensor<4>; 3]) {
        let [_, tokens, _, width] = x.dims();
        let x = x.cast(FloatDType::F32);
        let inverse = (x.clone().square().mean_dim(3) + self.epsilon).sqrt().recip();
        let weight = Tensor::<1>::from_dispatch(weight).reshape([1, 1, 1, width]);
        let [cos, sin] = [&self.cos, &self.sin]
            .map(|t| Tensor::<2>::from_dispatch(t.clone()).reshape([1, tokens, 1, width]).cast(FloatDType::F32));
        (x, inverse, [weight, cos, sin])
    }
}

/// `(-im, re)` of each pair `(re, im)`.
fn quarter_turn(x: Tensor<4>) -> Tensor<4> {
    let [batch, tokens, heads, width] = x.dims();
    let pairs = x.reshape([batch, tokens, heads, width / 2, 2]);
    let (re, im) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
    Tensor::cat(vec![im.neg(), re], 4).reshape([batch, tokens, heads, width])
}

impl Operation<2> for RmsNormRope {
    /// `x`, `weight`.
    type Saved = [Plain; 2];

    fn forward(&self, [x, weight]: [Plain; 2]) -> (Plain, Self::Saved) {
        let saved = [x.clone(), weight.clone()];
        let output = match cpu::floats([x, weight, self.cos.clone(), self.sin.clone()]) {
            Ok(all) => {
                let [x, weight, cos, sin] = all.map(cpu::in_rows);
                let [batch, tokens, heads, width] = cpu::dims(&x);
                let (x, weight, cos, sin) = (Rows::new(&x), Rows::new(&weight), Rows::new(&cos), Rows::new(&sin));
                let weight = weight.row([0; 3]);
                let y = cpu::build(
                    batch * heads * tokens * width,
                    width,
                    #[inline(always)]
                    |row, y| {
                        let (b, head, token) = (row / (tokens * heads), row / tokens % heads, row % tokens);
                        let x = x.row([b, token, head]);
                        let inverse = inverse_root(x, self.epsilon as f32);
                        let y = fill(
                            y,
                            [x, weight],
                            #[inline(always)]
                            |[x, weight]| x * inverse * weight,
                        );
                        rotate(y, cos.row([0, 0, token]), sin.row([0, 0, token]));
                    },
                );
                cpu::plain(cpu::tensor(y, [batch, heads, tokens, width]))
            }
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => cuda::rope::forward(all, self.epsilon),
            Err([x, weight, ..]) => {
                let x = Tensor::<4>::from_dispatch(x);
                let dtype: FloatDType = x.dtype().into();
                let (x, inverse, [weight, cos, sin]) = self.composed(x, weight);
                let normed = ((x * inverse).cast(dtype) * weight).cast(FloatDType::F32);
                let turned = quarter_turn(normed.clone());
                (normed * cos + turned * sin).cast(dtype).swap_dims(1, 2).into_dispatch()
            }
        };
        (output, saved)
    }

    fn backward(self, [x, weight]: Self::Saved, gradient: Plain, wanted: [bool; 2]) -> [Option<Plain>; 2] {
        let [wants_x, wants_weight] = wanted;
        let dweight = wants_weight.then(|| self.weight_gradient(x.clone(), weight.clone(), gradient.clone()));
        let dx = wants_x.then(|| self.input_gradient(x, weight, gradient));
        [dx, dweight]
    }
}

impl RmsNormRope {
    fn input_gradient(&self, x: Plain, weight: Plain, gradient: Plain) -> Plain {
        match cpu::floats([x, gradient, weight, self.cos.clone(), self.sin.clone()]) {
            Ok(all) => {
                let [x, g, weight, cos, sin] = all.map(cpu::in_rows);
                let [batch, tokens, heads, width] = cpu::dims(&x);
                let (x, g, weight) = (Rows::new(&x), Rows::new(&g), Rows::new(&weight));
                let (cos, sin, weight) = (Rows::new(&cos), Rows::new(&sin), weight.row([0; 3]));
                let dx = cpu::build(
                    batch * tokens * heads * width,
                    width,
                    #[inline(always)]
                    |row, dx| {
                        let (b, token, head) = (row / (tokens * heads), row / heads % tokens, row % heads);
                        let x = x.row([b, token, head]);
                        let inverse = inverse_root(x, self.epsilon as f32);
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
                cpu::plain(cpu::tensor(dx, [batch, tokens, heads, width]))
            }
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => cuda::rope::backward(all, self.epsilon),
            Err([x, g, weight, ..]) => {
                let [x, g]: [Tensor<4>; 2] = [x, g].map(Tensor::from_dispatch);
                let dtype: FloatDType = x.dtype().into();
                let (x, inverse, [weight, cos, sin]) = self.composed(x, weight);
                let g = g.swap_dims(1, 2).cast(FloatDType::F32);
                // The transpose of a quarter turn is the quarter turn the other way.
                let d = g.clone() * cos - quarter_turn(g * sin);
                let d = d * weight.cast(FloatDType::F32);
                let slope = (d.clone() * x.clone()).mean_dim(3) * inverse.clone().square();
                ((d - x * slope) * inverse).cast(dtype).into_dispatch()
            }
        }
    }

    /// The sum over all rows of the gradient turned back, times the normed input; in the dtype of the weight.
    fn weight_gradient(&self, x: Plain, weight: Plain, gradient: Plain) -> Plain {
        match cpu::floats([x, gradient, self.cos.clone(), self.sin.clone()]) {
            Ok(all) => {
                let [x, g, cos, sin] = all.map(cpu::in_rows);
                let [batch, tokens, heads, width] = cpu::dims(&x);
                let (x, g, cos, sin) = (Rows::new(&x), Rows::new(&g), Rows::new(&cos), Rows::new(&sin));
                let sums = cpu::column_sums(
                    batch * tokens * heads,
                    width,
                    #[inline(always)]
                    |row, sums| {
                        let (b, token, head) = (row / (tokens * heads), row / heads % tokens, row % heads);
                        let x = x.row([b, token, head]);
                        let inverse = inverse_root(x, self.epsilon as f32);
                        let (g, cos, sin) = (g.row([b, head, token]), cos.row([0, 0, token]), sin.row([0, 0, token]));
                        let pairs = g.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0);
                        let angles = cos.as_chunks::<2>().0.iter().zip(sin.as_chunks::<2>().0);
                        for ((sum, (g, x)), (cos, sin)) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs).zip(angles)
                        {
                            let [re, im] = *g;
                            sum[0] += (re * cos[0] + im * sin[1]) * x[0] * inverse;
                            sum[1] += (im * cos[1] - re * sin[0]) * x[1] * inverse;
                        }
                    },
                );
                cpu::plain(cpu::tensor(sums, [width]))
            }
            Err([x, g, ..]) => {
                let [x, g]: [Tensor<4>; 2] = [x, g].map(Tensor::from_dispatch);
                let width = x.dims()[3];
                let dtype: FloatDType = Tensor::<1>::from_dispatch(weight.clone()).dtype().into();
                let (x, inverse, [_, cos, sin]) = self.composed(x, weight);
                let g = g.swap_dims(1, 2).cast(FloatDType::F32);
                let d = g.clone() * cos - quarter_turn(g * sin);
                let sums = (d * x * inverse).reshape([-1, width as i32]).sum_dim(0);
                sums.reshape([width]).cast(dtype).into_dispatch()
            }
        }
    }
}
