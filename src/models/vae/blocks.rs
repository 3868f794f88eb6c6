//! The parts that encoder and decoder share: residual block, attention, middle block.

use std::ops::Range;

use burn::tensor::Tensor;

use super::bands::{Bands, Picture, Plan, Rows, seen};
use crate::{
    kernels,
    nn::{Conv2d, GroupNorm, Linear},
    weights::Weights,
};

/// The epsilon of every group norm in the VAE, which is not in the configuration.
pub(super) const EPSILON: f64 = 1e-6;

/// The number of queries at a time: all scores of an image of 1024² at once would be 1 GiB.
const QUERIES: usize = 1024;

/// A convolution of the VAE: an image has the same bits whatever its batch, and whether it is computed in bands.
pub(super) fn conv(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Conv2d {
    Conv2d::load(weights, inputs, outputs, kernel).by_sample()
}

/// Two convolutions with norms before them, added to the input.
#[derive(Clone, Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(super) fn load(weights: &Weights, inputs: usize, outputs: usize, groups: usize) -> Self {
        Self {
            norm1: GroupNorm::load(&weights.at("norm1"), inputs, groups, EPSILON),
            conv1: conv(&weights.at("conv1"), inputs, outputs, 3),
            norm2: GroupNorm::load(&weights.at("norm2"), outputs, groups, EPSILON),
            conv2: conv(&weights.at("conv2"), outputs, outputs, 3),
            shortcut: (inputs != outputs).then(|| conv(&weights.at("conv_shortcut"), inputs, outputs, 1)),
        }
    }

    /// `[B, in, H, W]` → `[B, out, H, W]`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let h = self.conv2.forward(self.norm2.forward_silu(h));
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x) + h,
            None => x + h,
        }
    }

    /// [`forward`](Self::forward) of an image in bands.
    pub(super) fn forward_bands(&self, mut x: Picture, plan: Plan) -> Bands {
        let [batch, channels, height, width] = x.shape();
        let mut statistics = self.norm1.statistics([batch, channels, height, width]);
        plan.bands(height).for_each(|band| statistics.add(x.rows(&band).x, band.start));
        let first = statistics.finish();

        // Between the convolutions, from the rows that the first one sees.
        let inner =
            |x: Rows, rows: &Range<usize>| x.map(|x| self.norm1.forward_silu_rows(x, &first)).conv(&self.conv1, rows);
        let shape = [batch, self.conv1.outputs(), height, width];
        let mut statistics = self.norm2.statistics(shape);
        let kept = x.kept() + shape.iter().product::<usize>() <= plan.keep;
        let bands = plan.bands(height).map(|band| {
            let h = inner(x.rows(&seen(&band, height)), &band);
            statistics.add(h.x.clone(), band.start);
            h
        });
        let mut h = match kept {
            true => Some(Bands::of(bands)),
            false => {
                bands.for_each(drop);
                None
            }
        };
        let second = statistics.finish();

        Bands::of(plan.bands(height).map(|band| {
            let rows = seen(&band, height);
            let (h, x) = match &mut h {
                Some(h) => {
                    h.forget(rows.start);
                    x.forget(band.start);
                    (h.rows(&rows), x.rows(&band))
                }
                None => {
                    let seen = seen(&rows, height);
                    x.forget(seen.start);
                    let x = x.rows(&seen);
                    (inner(x.clone(), &rows), x.some(&band))
                }
            };
            let h = h.map(|h| self.norm2.forward_silu_rows(h, &second)).conv(&self.conv2, &band).x;
            x.map(|x| match &self.shortcut {
                Some(shortcut) => shortcut.forward_rows(x, height) + h,
                None => x + h,
            })
        }))
    }
}

/// `count` residual blocks in a row under `resnets.`; the first changes the number of channels.
pub(super) fn resnets(
    weights: &Weights,
    count: usize,
    inputs: usize,
    outputs: usize,
    groups: usize,
) -> Vec<ResnetBlock> {
    let channels = |i| if i == 0 { inputs } else { outputs };
    (0..count).map(|i| ResnetBlock::load(&weights.at(format!("resnets.{i}")), channels(i), outputs, groups)).collect()
}

/// Self-attention over all positions, with one head, added to the input.
#[derive(Clone, Debug)]
struct Attention {
    norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    /// Takes the projections by their present names or those of the first diffusers releases, which published files keep; some
    /// store them as 1×1 convolutions.
    fn load(weights: &Weights, channels: usize, groups: usize) -> Self {
        let linear = |names: &[&str]| Linear::load(&weights.at_any(names), channels, channels);
        Self {
            norm: GroupNorm::load(&weights.at("group_norm"), channels, groups, EPSILON),
            to_q: linear(&["to_q", "query"]),
            to_k: linear(&["to_k", "key"]),
            to_v: linear(&["to_v", "value"]),
            to_out: linear(&["to_out.0", "proj_attn"]),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let places = height * width;
        let h = self.norm.forward(x.clone()).reshape([batch, channels, places]).swap_dims(1, 2);
        let head = |linear: &Linear| linear.forward(h.clone()).unsqueeze_dim::<4>(1);
        let (q, k, v) = (head(&self.to_q), head(&self.to_k), head(&self.to_v));
        let parts = q.split(QUERIES, 2).into_iter().map(|q| kernels::attention(q, k.clone(), v.clone())).collect();
        let h = self.to_out.forward(Tensor::cat(parts, 2).reshape([batch, places, channels]));
        x + h.swap_dims(1, 2).reshape([batch, channels, height, width])
    }
}

/// Residual block, attention, residual block, at the lowest resolution.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    attention: Option<Attention>,
    second: ResnetBlock,
}

impl MidBlock {
    pub(super) fn load(weights: &Weights, channels: usize, groups: usize, attention: bool) -> Self {
        Self {
            first: ResnetBlock::load(&weights.at("resnets.0"), channels, channels, groups),
            attention: attention.then(|| Attention::load(&weights.at("attentions.0"), channels, groups)),
            second: ResnetBlock::load(&weights.at("resnets.1"), channels, channels, groups),
        }
    }

    /// `[B, C, h, w]` → `[B, C, h, w]`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.first.forward(x);
        let x = match &self.attention {
            Some(attention) => attention.forward(x),
            None => x,
        };
        self.second.forward(x)
    }
}
