//! Latents to pixels.

use burn::tensor::Tensor;

use super::{
    VaeConfig,
    bands::{Bands, Picture, Plan},
    blocks::{EPSILON, MidBlock, ResnetBlock, conv, resnets},
};
use crate::{
    nn::{Conv2d, GroupNorm, upsample_nearest},
    weights::Weights,
};

/// Doubles the image's sides once for each level but the last. Levels run from the lowest resolution up.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    middle: MidBlock,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

#[derive(Clone, Debug)]
struct Level {
    resnets: Vec<ResnetBlock>,
    upsample: Option<Conv2d>,
}

impl Decoder {
    /// `decoder` of the VAE's tensors, and the convolution before it.
    pub(super) fn load(vae: &Weights, config: &VaeConfig) -> Self {
        let (weights, latents) = (&vae.at("decoder"), config.latent_channels);
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (groups, last) = (config.norm_num_groups, channels.len() - 1);
        let level = |i: usize| {
            let weights = weights.at(format!("up_blocks.{i}"));
            let upsample = || conv(&weights.at("upsamplers.0.conv"), channels[i], channels[i], 3);
            let count = config.layers_per_block + 1;
            Level {
                resnets: resnets(&weights, count, channels[i.saturating_sub(1)], channels[i], groups),
                upsample: (i < last).then(upsample),
            }
        };
        let pointwise = || conv(&vae.at("post_quant_conv"), latents, latents, 1);
        Self {
            post_quant_conv: config.use_post_quant_conv.then(pointwise),
            conv_in: conv(&weights.at("conv_in"), latents, channels[0], 3),
            middle: MidBlock::load(&weights.at("mid_block"), channels[0], groups, config.mid_block_add_attention),
            levels: (0..=last).map(level).collect(),
            norm_out: GroupNorm::load(&weights.at("conv_norm_out"), channels[last], groups, EPSILON),
            conv_out: conv(&weights.at("conv_out"), channels[last], config.out_channels, 3),
        }
    }

    /// `[B, C, h, w]` → `[B, 3, H, W]`, in the dtype of the weights.
    pub(super) fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut x = self.start(latents);
        for level in &self.levels {
            x = level.resnets.iter().fold(x, |x, block| block.forward(x));
            if let Some(upsample) = &level.upsample {
                x = upsample.forward(upsample_nearest(x));
            }
        }
        self.conv_out.forward(self.norm_out.forward_silu(x))
    }

    /// The part at the lowest resolution, before the first level.
    fn start(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = latents.cast(self.conv_in.dtype());
        let latents = match &self.post_quant_conv {
            Some(conv) => conv.forward(latents),
            None => latents,
        };
        self.middle.forward(self.conv_in.forward(latents))
    }

    /// [`forward`](Self::forward) in bands of so many rows; the middle block, at the lowest resolution, is computed at once.
    pub(super) fn forward_bands(&self, latents: Tensor<4>, rows: usize) -> Tensor<4> {
        let [batch, _, height, width] = latents.dims();
        let factor = 1 << self.levels.iter().filter(|level| level.upsample.is_some()).count();
        let plan = Plan::new(rows, [batch, self.conv_out.inputs(), factor * height, factor * width]);
        let mut x = Bands::whole(self.start(latents));
        let mut doubled = None;
        for level in &self.levels {
            for block in &level.resnets {
                let picture = match doubled.take() {
                    Some(conv) => Picture::doubled(x, conv, plan),
                    None => Picture::Kept(x),
                };
                x = block.forward_bands(picture, plan);
            }
            doubled = level.upsample.as_ref();
        }
        x.finish(&self.norm_out, &self.conv_out, plan).into_tensor()
    }
}
