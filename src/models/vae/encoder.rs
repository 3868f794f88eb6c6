//! Pixels to moments.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{
    VaeConfig,
    bands::{Bands, Picture, Plan, seen},
    blocks::{EPSILON, MidBlock, ResnetBlock, conv, resnets},
};
use crate::{
    nn::{Conv2d, GroupNorm, pad_bottom_right},
    weights::Weights,
};

/// Halves the image's sides once for each level but the last.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

#[derive(Clone, Debug)]
struct Level {
    resnets: Vec<ResnetBlock>,
    downsample: Option<Conv2d>,
}

impl Encoder {
    /// `encoder` of the VAE's tensors, and the convolution after it.
    pub(super) fn load(vae: &Weights, config: &VaeConfig) -> Self {
        let weights = &vae.at("encoder");
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let moments = 2 * config.latent_channels;
        let last = channels.len() - 1;
        let level = |i: usize| {
            let weights = weights.at(format!("down_blocks.{i}"));
            let sampler = weights.at("downsamplers.0.conv");
            let downsample = || conv(&sampler, channels[i], channels[i], 3).with(2, 0);
            Level {
                resnets: resnets(&weights, config.layers_per_block, channels[i.saturating_sub(1)], channels[i], groups),
                downsample: (i < last).then(downsample),
            }
        };
        Self {
            conv_in: conv(&weights.at("conv_in"), config.in_channels, channels[0], 3),
            levels: (0..=last).map(level).collect(),
            middle: MidBlock::load(&weights.at("mid_block"), channels[last], groups, config.mid_block_add_attention),
            norm_out: GroupNorm::load(&weights.at("conv_norm_out"), channels[last], groups, EPSILON),
            conv_out: conv(&weights.at("conv_out"), channels[last], moments, 3),
            quant_conv: config.use_quant_conv.then(|| conv(&vae.at("quant_conv"), moments, moments, 1)),
        }
    }

    /// `[B, 3, H, W]` → `[B, 2C, h, w]`, in the dtype of the weights.
    pub(super) fn forward(&self, pixels: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(pixels.cast(self.conv_in.dtype()));
        for level in &self.levels {
            x = level.resnets.iter().fold(x, |x, block| block.forward(x));
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(pad_bottom_right(x));
            }
        }
        self.finish(x)
    }

    /// The part after the last level.
    fn finish(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.conv_out.forward(self.norm_out.forward_silu(self.middle.forward(x)));
        match &self.quant_conv {
            Some(conv) => conv.forward(x),
            None => x,
        }
    }

    /// [`forward`](Self::forward) in bands of so many rows; what is at the lowest resolution is computed at once.
    pub(super) fn forward_bands(&self, pixels: Tensor<4>, rows: usize) -> Tensor<4> {
        let [batch, _, height, width] = pixels.dims();
        let plan = Plan::new(rows, [batch, self.conv_in.outputs(), height, width]);
        let pixels = Bands::whole(pixels.cast(self.conv_in.dtype()));
        let stem = |band: Range<usize>| pixels.rows(&seen(&band, height)).conv(&self.conv_in, &band);
        let mut bands = Bands::of(plan.bands(height).map(stem));
        let (last, levels) = self.levels.split_last().expect("there is at least one level");
        for level in levels {
            bands = level.resnets.iter().fold(bands, |x, block| block.forward_bands(Picture::Kept(x), plan));
            if let Some(downsample) = &level.downsample {
                bands = bands.halved(downsample, plan);
            }
        }
        self.finish(last.resnets.iter().fold(bands.into_tensor(), |x, block| block.forward(x)))
    }
}
