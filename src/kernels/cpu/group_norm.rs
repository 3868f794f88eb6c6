//! Normalization over groups of channels, alone or with SiLU.

use burn_flex::FlexTensor;

use super::{
    activation::{silu_slope, swish},
    group_statistics::{CHUNK, Statistics},
    loops::{Uninit, build, build_noting},
    simd::{fill, sum, update},
    tensor::{contiguous, dims, raw_tensor, tensor, values},
};
use crate::kernels::{formulas::GroupNorm, operation::RawTensor};

/// The output, and for each group its mean and reciprocal standard deviation, interleaved.
pub fn forward(norm: GroupNorm, inputs: [FlexTensor; 3]) -> (RawTensor, RawTensor) {
    let [x, weight, bias] = inputs.map(contiguous);
    let groups = Groups::new(norm, &x, &weight, &bias);
    let (y, statistics) = match norm.silu {
        true => groups.forward(norm.epsilon, swish),
        false => groups.forward(norm.epsilon, same),
    };
    let statistics: Vec<f32> = statistics.iter().flat_map(|s| [s.mean, s.inverse]).collect();
    let count = statistics.len();
    (raw_tensor(tensor::<4>(y, dims(&x))), raw_tensor(tensor(statistics, [count])))
}

/// The output for a band of rows of images with known `statistics`.
pub fn of_rows(norm: GroupNorm, inputs: [FlexTensor; 3], statistics: &[Statistics]) -> RawTensor {
    let [x, weight, bias] = inputs.map(contiguous);
    let groups = Groups::new(norm, &x, &weight, &bias);
    let y = match norm.silu {
        true => groups.apply(statistics, swish),
        false => groups.apply(statistics, same),
    };
    raw_tensor(tensor::<4>(y, dims(&x)))
}

/// The gradients of `x`, weight and bias, from these, that of the output and the statistics.
pub fn backward(norm: GroupNorm, all: [FlexTensor; 5]) -> [RawTensor; 3] {
    let [x, weight, bias, g, statistics] = all.map(contiguous);
    let (statistics, _) = values(&statistics).as_chunks::<2>();
    let statistics: Vec<_> = statistics.iter().map(|&[mean, inverse]| Statistics { mean, inverse }).collect();
    let (groups, g) = (Groups::new(norm, &x, &weight, &bias), values(&g));
    let [dx, dweight, dbias] = match norm.silu {
        true => groups.backward(&statistics, g, silu_slope),
        false => groups.backward(
            &statistics,
            g,
            #[inline(always)]
            |_| 1.0,
        ),
    };
    let vector = |data: Vec<f32>| tensor(data, dims::<1>(&weight));
    [tensor::<4>(dx, dims(&x)), vector(dweight), vector(dbias)].map(raw_tensor)
}

#[inline(always)]
fn same(y: f32) -> f32 {
    y
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

/// One channel of one sample, in the backward pass.
struct Plane<'a> {
    x: &'a [f32],
    /// Initially the gradient of the norm's output, then that of `x`.
    dx: &'a mut [f32],
    weight: f32,
    /// This sample's contributions to the gradients of weight and bias.
    of_weight: f64,
    of_bias: f64,
}

/// A contiguous tensor, and how its elements are grouped.
struct Groups<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    /// Groups per sample.
    groups: usize,
    /// Channels per group.
    channels: usize,
    /// Pixels per channel of a sample.
    plane: usize,
}

impl<'a> Groups<'a> {
    fn new(norm: GroupNorm, x: &'a FlexTensor, weight: &'a FlexTensor, bias: &'a FlexTensor) -> Self {
        let [_, channels, height, width] = dims(x);
        let [x, weight, bias] = [x, weight, bias].map(values);
        Self { x, weight, bias, groups: norm.groups, channels: channels / norm.groups, plane: height * width }
    }

    /// The channels of a group with their weights and biases.
    #[inline(always)]
    fn planes(&self, group: usize) -> impl Iterator<Item = (&'a [f32], f32, f32)> {
        let (first, size) = (group % self.groups * self.channels, self.channels * self.plane);
        let planes = self.x[group * size..][..size].chunks_exact(self.plane);
        let affine = self.weight[first..].iter().zip(&self.bias[first..]);
        planes.zip(affine).map(|(x, (weight, bias))| (x, *weight, *bias))
    }

    /// `activation` of the normalized values, and the statistics of each group.
    fn forward(&self, epsilon: f64, activation: impl Fn(f32) -> f32 + Sync) -> (Vec<f32>, Vec<Statistics>) {
        let size = self.channels * self.plane;
        build_noting(
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

    /// `activation` of the values normalized by the `statistics` of each group.
    fn apply(&self, statistics: &[Statistics], activation: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
        build(
            self.x.len(),
            self.channels * self.plane,
            #[inline(always)]
            |group, y| self.normalize(group, statistics[group], y, &activation),
        )
    }

    /// `activation` of the normalized values of one group.
    #[inline(always)]
    fn normalize(
        &self,
        group: usize,
        Statistics { mean, inverse }: Statistics,
        y: &mut Uninit,
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

    /// The gradients of `x`, weight and bias from `g`, that of the output, and the `slope` (derivative) of the activation. With `n` the
    /// normalized values and `d` the gradient of `n·weight + bias`: `dx = (weight·d − mean(weight·d) −
    /// n·mean(weight·d·n))/deviation`.
    fn backward(&self, statistics: &[Statistics], g: &[f32], slope: impl Fn(f32) -> f32 + Sync) -> [Vec<f32>; 3] {
        let size = self.channels * self.plane;
        let (dx, notes) = build_noting(
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
