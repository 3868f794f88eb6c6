//! Normalisation over groups of neighbouring channels and all places (Wu & He 2018), alone or with the SiLU that follows it
//! in convolutional blocks. Statistics are computed in f32 whatever the input is; the output has the input's type.

use burn::tensor::{FloatDType, Tensor, activation};
use burn_flex::FlexTensor;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    activation::{silu, silu_slope},
    cpu::{self, Fresh},
    group_statistics::{CHUNK, GroupStatistics, Statistics},
    operation::{Operation, Plain, apply},
    simd::{fill, sigmoid, sum, update},
};

/// `(x − mean)/√(variance + ε)·weight + bias`, with the statistics of each sample and group of channels.
///
/// `x` `[B, C, H, W]`, `weight` and `bias` `[C]` → `[B, C, H, W]`; `groups` divides `C`. All that is on a tape gets a gradient.
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, epsilon: f64) -> Tensor<4> {
    apply(GroupNorm { groups, epsilon, silu: false }, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()])
}

/// [`silu`] of [`group_norm`].
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, epsilon: f64) -> Tensor<4> {
    apply(GroupNorm { groups, epsilon, silu: true }, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()])
}

/// [`group_norm`], or with `silu` [`group_norm_silu`], of some rows of pictures whose `statistics` are known. Not for a tape.
///
/// On the CPU in f32 the result has the bits that it has with the whole picture.
pub fn group_norm_rows(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    statistics: &GroupStatistics,
    silu: bool,
) -> Tensor<4> {
    let norm = GroupNorm { groups: statistics.groups(), epsilon: 0.0, silu };
    let y = match (cpu::floats([x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]), statistics.known()) {
        (Ok(inputs), Some(statistics)) => {
            let [x, weight, bias] = inputs.map(cpu::in_order);
            let groups = norm.groups_of(&x, &weight, &bias);
            let y = match silu {
                true => groups.apply(statistics, swish),
                false => groups.apply(statistics, same),
            };
            cpu::plain(cpu::tensor::<4>(y, cpu::dims(&x)))
        }
        (Err([x, weight, bias]), None) => {
            let x = Tensor::<4>::from_dispatch(x);
            let dtype: FloatDType = x.dtype().into();
            let [_, channels, ..] = x.dims();
            let [mean, inverse] = statistics.of_channels(channels);
            let y = affine((x.cast(FloatDType::F32) - mean) * inverse, weight, bias);
            let y = if silu { super::silu(y) } else { y };
            y.cast(dtype).into_dispatch()
        }
        _ => panic!("rows are normalized by the statistics of pictures like them"),
    };
    Tensor::from_dispatch(y)
}

#[inline(always)]
fn swish(y: f32) -> f32 {
    y * sigmoid(y).0
}

#[inline(always)]
fn same(y: f32) -> f32 {
    y
}

#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNorm {
    pub groups: usize,
    pub epsilon: f64,
    pub silu: bool,
}

/// `Σ f` over rows of any length.
#[inline(always)]
fn long_sum<const N: usize>(rows: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f64 {
    let n = rows[0].len();
    let mut total = 0.0;
    for start in (0..n).step_by(CHUNK) {
        total += f64::from(sum(rows.map(|row| &row[start..n.min(start + CHUNK)]), &f));
    }
    total
}

/// One channel of one sample, on the way back.
struct Plane<'a> {
    x: &'a [f32],
    /// First the gradient of the norm, then that of `x`.
    dx: &'a mut [f32],
    weight: f32,
    /// The sums that are this sample's part of the gradients of weight and bias.
    of_weight: f64,
    of_bias: f64,
}

/// A tensor of numbers in order, and how they are grouped.
struct Groups<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    /// Groups of a sample.
    groups: usize,
    /// Channels of a group.
    channels: usize,
    /// Numbers of a channel of a sample.
    plane: usize,
}

impl<'a> Groups<'a> {
    /// The channels of a group with their weights and biases.
    #[inline(always)]
    fn planes(&self, group: usize) -> impl Iterator<Item = (&'a [f32], f32, f32)> {
        let (first, size) = (group % self.groups * self.channels, self.channels * self.plane);
        let planes = self.x[group * size..][..size].chunks_exact(self.plane);
        let affine = self.weight[first..].iter().zip(&self.bias[first..]);
        planes.zip(affine).map(|(x, (weight, bias))| (x, *weight, *bias))
    }

    /// `activation` of the normalized numbers, and the statistics of each group.
    fn forward(&self, epsilon: f64, activation: impl Fn(f32) -> f32 + Sync) -> (Vec<f32>, Vec<Statistics>) {
        let size = self.channels * self.plane;
        cpu::build_noting(
            self.x.len(),
            size,
            #[inline(always)]
            |group, y| {
                let statistics = Statistics::of(&self.x[group * size..][..size], epsilon);
                self.normalize(group, statistics, y, &activation);
                statistics
            },
        )
    }

    /// `activation` of the numbers normalized by `statistics`, of each group.
    fn apply(&self, statistics: &[Statistics], activation: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
        cpu::build(
            self.x.len(),
            self.channels * self.plane,
            #[inline(always)]
            |group, y| self.normalize(group, statistics[group], y, &activation),
        )
    }

    /// `activation` of the normalized numbers of one group.
    #[inline(always)]
    fn normalize(
        &self,
        group: usize,
        Statistics { mean, inverse }: Statistics,
        y: &mut Fresh,
        activation: impl Fn(f32) -> f32,
    ) {
        for ((x, weight, bias), y) in self.planes(group).zip(y.chunks_exact_mut(self.plane)) {
            let scale = weight * inverse;
            fill(
                y,
                [x],
                #[inline(always)]
                |[x]| activation((x - mean).mul_add(scale, bias)),
            );
        }
    }

    /// The gradients of `x`, weight and bias from `g`, that of the output, and the `slope` of the activation. With `n` the
    /// normalized numbers and `d` the gradient of `n·weight + bias`: `dx = (weight·d − mean(weight·d) −
    /// n·mean(weight·d·n))/deviation`.
    fn backward(&self, statistics: &[Statistics], g: &[f32], slope: impl Fn(f32) -> f32 + Sync) -> [Vec<f32>; 3] {
        let size = self.channels * self.plane;
        let (dx, notes) = cpu::build_noting(
            self.x.len(),
            size,
            #[inline(always)]
            |group, dx| {
                let Statistics { mean, inverse } = statistics[group];
                let g = g[group * size..][..size].chunks_exact(self.plane);
                let mut planes = Vec::with_capacity(self.channels);
                let (mut level, mut tilt) = (0.0, 0.0);
                for (((x, weight, bias), g), dx) in self.planes(group).zip(g).zip(dx.chunks_exact_mut(self.plane)) {
                    let scale = weight * inverse;
                    let dx = fill(
                        dx,
                        [x, g],
                        #[inline(always)]
                        |[x, g]| g * slope((x - mean).mul_add(scale, bias)),
                    );
                    let of_bias = long_sum(
                        [&*dx],
                        #[inline(always)]
                        |[d]| d,
                    );
                    let of_weight = f64::from(inverse)
                        * long_sum(
                            [&*dx, x],
                            #[inline(always)]
                            |[d, x]| d * (x - mean),
                        );
                    level += f64::from(weight) * of_bias / size as f64;
                    tilt += f64::from(weight) * of_weight / size as f64;
                    planes.push(Plane { x, dx, weight, of_weight, of_bias });
                }
                let (level, tilt) = (inverse * level as f32, inverse * inverse * tilt as f32);
                for Plane { x, dx, weight, .. } in &mut planes {
                    let scale = *weight * inverse;
                    update(
                        dx,
                        [x],
                        #[inline(always)]
                        |d, [x]| scale.mul_add(d, -level) - (x - mean) * tilt,
                    );
                }
                planes.into_iter().map(|plane| [plane.of_weight, plane.of_bias]).collect::<Vec<_>>()
            },
        );
        let mut sums = vec![[0.0; 2]; self.groups * self.channels];
        for (group, parts) in notes.into_iter().enumerate() {
            let first = group % self.groups * self.channels;
            for (sum, part) in sums[first..].iter_mut().zip(parts) {
                *sum = [sum[0] + part[0], sum[1] + part[1]];
            }
        }
        let [dweight, dbias] = [0, 1].map(|i| sums.iter().map(|sum| sum[i] as f32).collect());
        [dx, dweight, dbias]
    }
}

impl Operation<3> for GroupNorm {
    /// `x`, weight, bias, and the statistics; where the operation is composed, in place of these something that exists.
    type Saved = [Plain; 4];

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, Self::Saved) {
        let saved = inputs.clone();
        let (output, statistics) = match cpu::floats(inputs) {
            Ok(inputs) => {
                let [x, weight, bias] = inputs.map(cpu::in_order);
                let groups = self.groups_of(&x, &weight, &bias);
                let (y, statistics) = match self.silu {
                    true => groups.forward(self.epsilon, swish),
                    false => groups.forward(self.epsilon, same),
                };
                let statistics: Vec<f32> = statistics.iter().flat_map(|s| [s.mean, s.inverse]).collect();
                let count = statistics.len();
                (cpu::plain(cpu::tensor::<4>(y, cpu::dims(&x))), cpu::plain(cpu::tensor(statistics, [count])))
            }
            #[cfg(feature = "cuda")]
            Err(inputs) if cuda::takes(&inputs) => cuda::group_norm::forward(*self, inputs),
            Err([x, weight, bias]) => {
                let x = Tensor::from_dispatch(x);
                let dtype: FloatDType = x.dtype().into();
                let (normed, _) = self.standardize(x);
                let y = affine(normed, weight, bias);
                let y = if self.silu { silu(y) } else { y };
                (y.cast(dtype).into_dispatch(), saved[0].clone())
            }
        };
        let [x, weight, bias] = saved;
        (output, [x, weight, bias, statistics])
    }

    fn backward(self, saved: Self::Saved, gradient: Plain, wanted: [bool; 3]) -> [Option<Plain>; 3] {
        let [x, weight, bias, statistics] = saved;
        let gradients = match cpu::floats([x, weight, bias, gradient, statistics]) {
            Ok(all) => {
                let [x, weight, bias, g, statistics] = all.map(cpu::in_order);
                let (statistics, _) = cpu::numbers(&statistics).as_chunks::<2>();
                let statistics: Vec<_> =
                    statistics.iter().map(|&[mean, inverse]| Statistics { mean, inverse }).collect();
                let (groups, g) = (self.groups_of(&x, &weight, &bias), cpu::numbers(&g));
                let [dx, dweight, dbias] = match self.silu {
                    true => groups.backward(&statistics, g, silu_slope),
                    false => groups.backward(
                        &statistics,
                        g,
                        #[inline(always)]
                        |_| 1.0,
                    ),
                };
                let vector = |data: Vec<f32>| cpu::tensor(data, cpu::dims::<1>(&weight));
                [cpu::tensor::<4>(dx, cpu::dims(&x)), vector(dweight), vector(dbias)].map(cpu::plain)
            }
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => return cuda::group_norm::backward(self, all, wanted),
            Err([x, weight, bias, g, _]) => self.composed_backward(Tensor::from_dispatch(x), weight, bias, g),
        };
        let mut wanted = wanted.into_iter();
        gradients.map(|gradient| wanted.next()?.then_some(gradient))
    }
}

impl GroupNorm {
    fn groups_of<'a>(&self, x: &'a FlexTensor, weight: &'a FlexTensor, bias: &'a FlexTensor) -> Groups<'a> {
        let [_, channels, height, width] = cpu::dims(x);
        let [x, weight, bias] = [x, weight, bias].map(cpu::numbers);
        Groups { x, weight, bias, groups: self.groups, channels: channels / self.groups, plane: height * width }
    }

    /// `(x − mean)/deviation` and `1/deviation`, in f32.
    fn standardize(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let x = x.cast(FloatDType::F32);
        let centred = x.clone() - self.mean(x);
        let inverse = (self.mean(centred.clone().square()) + self.epsilon).sqrt().recip();
        (centred * inverse.clone(), inverse)
    }

    /// The means of each group, at all its numbers. Means of means: one sum over the millions of places of a large picture
    /// would lose digits.
    fn mean(&self, x: Tensor<4>) -> Tensor<4> {
        let shape @ [batch, channels, height, width] = x.dims();
        let each = channels / self.groups;
        let rows = x.reshape([batch, self.groups, each * height, width]);
        let means = rows.mean_dim(3).mean_dim(2).reshape([batch, self.groups, 1, 1]);
        means.expand([batch, self.groups, each, height * width]).reshape(shape)
    }

    fn composed_backward(&self, x: Tensor<4>, weight: Plain, bias: Plain, g: Plain) -> [Plain; 3] {
        let dtype: FloatDType = x.dtype().into();
        let [of_weight, of_bias] =
            [&weight, &bias].map(|t| FloatDType::from(Tensor::<1>::from_dispatch(t.clone()).dtype()));
        let (normed, inverse) = self.standardize(x);
        let mut d = Tensor::<4>::from_dispatch(g).cast(FloatDType::F32);
        if self.silu {
            let y = affine(normed.clone(), weight.clone(), bias);
            let s = activation::sigmoid(y.clone());
            d = d * (s.clone() + y * s.clone() * (-s + 1.0));
        }
        let over_places = |t: Tensor<4>, dtype: FloatDType| {
            let [_, channels, ..] = t.dims();
            t.sum_dim(3).sum_dim(2).sum_dim(0).reshape([channels]).cast(dtype).into_dispatch()
        };
        let dweight = over_places(d.clone() * normed.clone(), of_weight);
        let dbias = over_places(d.clone(), of_bias);
        let d = d * per_channel(weight);
        let dx = (d.clone() - self.mean(d.clone()) - normed.clone() * self.mean(d * normed)) * inverse;
        [dx.cast(dtype).into_dispatch(), dweight, dbias]
    }
}

/// A number for each channel, in f32.
fn per_channel(t: Plain) -> Tensor<4> {
    let t = Tensor::<1>::from_dispatch(t).cast(FloatDType::F32);
    let channels = t.dims()[0];
    t.reshape([1, channels, 1, 1])
}

fn affine(normed: Tensor<4>, weight: Plain, bias: Plain) -> Tensor<4> {
    normed * per_channel(weight) + per_channel(bias)
}
