//! Pixels to moments.

use burn::tensor::Tensor;

use super::{
    VaeConfig,
    blocks::{EPSILON, MidBlock, ResnetBlock, resnets},
};
use crate::{
    nn::{Conv2d, GroupNorm, pad_bottom_right},
    weights::Weights,
};

/// Halves the picture's sides once for each level but the last.
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
            let conv = weights.at("downsamplers.0.conv");
            let downsample = || Conv2d::load(&conv, channels[i], channels[i], 3).with(2, 0);
            Level {
                resnets: resnets(&weights, config.layers_per_block, channels[i.saturating_sub(1)], channels[i], groups),
                downsample: (i < last).then(downsample),
            }
        };
        Self {
            conv_in: Conv2d::load(&weights.at("conv_in"), config.in_channels, channels[0], 3),
            levels: (0..=last).map(level).collect(),
            middle: MidBlock::load(&weights.at("mid_block"), channels[last], groups, config.mid_block_add_attention),
            norm_out: GroupNorm::load(&weights.at("conv_norm_out"), channels[last], groups, EPSILON),
            conv_out: Conv2d::load(&weights.at("conv_out"), channels[last], moments, 3),
            quant_conv: config.use_quant_conv.then(|| Conv2d::load(&vae.at("quant_conv"), moments, moments, 1)),
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
        let x = self.conv_out.forward(self.norm_out.forward_silu(self.middle.forward(x)));
        match &self.quant_conv {
            Some(conv) => conv.forward(x),
            None => x,
        }
    }
}
