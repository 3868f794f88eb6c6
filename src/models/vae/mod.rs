//! The autoencoder between pictures and latents (`AutoencoderKL`, Rombach et al. 2022).
//!
//! Memory: the largest tensors are those of the decoder's last level, `block_out_channels[1]` channels at full size. For
//! FLUX.1 at 1024² that is 1 GiB each in f32, and about four are alive inside a residual block (its input, the normed
//! input, the convolution's own channels-last copy of that, and the output).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod scale;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{error::Result, nn::Conv2d, weights::Weights};
pub use config::{DownBlockType, UpBlockType, VaeActivation, VaeClass, VaeConfig};
use decoder::Decoder;
use encoder::Encoder;
pub use scale::LatentScale;

/// The two halves of the autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    /// What it was built from.
    pub config: VaeConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// Opens a `vae/` folder. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// Files are missing, the config describes another model, or config and weights do not fit.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        let config = VaeConfig::open(&folder)?;
        let weights = Weights::open(folder, device, dtype)?;
        let model = Self::load(&weights, config);
        weights.finish()?;
        Ok(model)
    }

    /// Takes the model's tensors.
    pub fn load(weights: &Weights, config: VaeConfig) -> Self {
        let latents = config.latent_channels;
        let pointwise =
            |name: &str, used: bool, channels| used.then(|| Conv2d::load(&weights.at(name), channels, channels, 1));
        Self {
            encoder: Encoder::load(&weights.at("encoder"), &config),
            quant_conv: pointwise("quant_conv", config.use_quant_conv, 2 * latents),
            post_quant_conv: pointwise("post_quant_conv", config.use_post_quant_conv, latents),
            decoder: Decoder::load(&weights.at("decoder"), &config),
            config,
        }
    }

    /// Pictures to the distribution of their latents.
    ///
    /// `pixels` `[B, 3, H, W]` in [-1, 1], both sides divisible by [`downsampling`](Self::downsampling); the result is in
    /// the dtype of the weights.
    pub fn encode(&self, pixels: Tensor<4>) -> Moments {
        let x = self.encoder.forward(pixels.cast(self.dtype()));
        Moments::from_tensor(match &self.quant_conv {
            Some(conv) => conv.forward(x),
            None => x,
        })
    }

    /// Raw (not scaled) latents `[B, C, h, w]` to pictures `[B, 3, H, W]`, about in [-1, 1], in the dtype of the weights.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = latents.cast(self.dtype());
        self.decoder.forward(match &self.post_quant_conv {
            Some(conv) => conv.forward(x),
            None => x,
        })
    }

    /// What lies between raw latents and those a diffusion model sees.
    pub fn latent_scale(&self) -> LatentScale {
        LatentScale { shift: self.config.shift_factor.unwrap_or(0.0), factor: self.config.scaling_factor }
    }

    /// How many pixels, along each side, one latent place stands for.
    pub fn downsampling(&self) -> usize {
        self.config.downsampling()
    }

    /// The channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    fn dtype(&self) -> FloatDType {
        self.encoder.dtype()
    }
}

/// A normal distribution over latents, one mean and one variance for each number.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[B, C, h, w]`.
    pub mean: Tensor<4>,
    /// `ln σ²`, `[B, C, h, w]`, between -30 and 20.
    pub log_variance: Tensor<4>,
}

impl Moments {
    /// Splits what the encoder puts out, `[B, 2C, h, w]`, and bounds the variance.
    pub fn from_tensor(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        Self {
            mean: moments.clone().narrow(1, 0, channels),
            log_variance: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    /// Mean and log-variance in one tensor, `[B, 2C, h, w]`: what a cache stores.
    pub fn into_tensor(self) -> Tensor<4> {
        Tensor::cat(vec![self.mean, self.log_variance], 1)
    }

    /// The most probable latents: the mean.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone()
    }

    /// The standard deviation.
    pub fn deviation(&self) -> Tensor<4> {
        (self.log_variance.clone() * 0.5).exp()
    }

    /// `mean + σ·noise`, with `noise` `[B, C, h, w]` drawn from the standard normal distribution.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        let dtype: FloatDType = self.mean.dtype().into();
        self.mean.clone() + self.deviation() * noise.cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variance_is_bounded() {
        let extremes = Tensor::<4>::full([1, 2, 1, 1], 100.0, &Device::flex());
        let moments = Moments::from_tensor(extremes);
        assert_eq!(moments.log_variance.clone().into_scalar::<f32>(), 20.0);
        assert_eq!(moments.mode().into_scalar::<f32>(), 100.0);
    }
}
