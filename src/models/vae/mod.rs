//! The autoencoder between images and latents (`AutoencoderKL`, Rombach et al. 2022).
//!
//! Memory: the largest tensors are those of the decoder's last level, `block_out_channels[1]` channels at full size. For
//! FLUX.1 at 1024² that is 1 GiB each in f32, and between two and three are alive inside a residual block (its input, the normed
//! input, and the output). In bands there is one at most, of `block_out_channels[0]` channels.

mod bands;
mod blocks;
mod config;
mod decoder;
mod encoder;
mod scale;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{
    error::Result,
    lending::{Residence, Sizes, Whole},
    limits::Limits,
    weights::Weights,
};
pub use config::{DownBlockType, UpBlockType, VaeActivation, VaeClass, VaeConfig};
use decoder::Decoder;
use encoder::Encoder;
pub use scale::LatentScale;

/// The two halves of the autoencoder, each of which is lent for one use.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    /// Its configuration.
    pub config: VaeConfig,
    encoder: Whole<Encoder>,
    decoder: Whole<Decoder>,
    sizes: Sizes,
}

impl AutoencoderKl {
    /// Opens a `vae/` folder. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// Files are missing, the config describes another model, or config and weights do not fit.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        Self::open_as(Residence::Resident, folder, device, dtype)
    }

    /// The VAE in the folder of a whole model, as every pipeline uses it: in f32, because the activations of Stable Diffusion's
    /// outgrow f16, and bf16 would show in the images.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(model: &Path, residence: Residence, device: &Device) -> Result<Self> {
        Self::open_as(residence, model.join("vae"), device, Some(FloatDType::F32))
    }

    fn open_as(
        residence: Residence,
        folder: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<Self> {
        let config = VaeConfig::open(&folder)?;
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config, residence))
    }

    /// Takes the model's tensors; the caller ends with [`Weights::finish`].
    pub fn load(weights: &Weights, config: VaeConfig, residence: Residence) -> Self {
        let [of_encoder, of_decoder] = [config.clone(), config.clone()];
        let before = weights.bytes();
        let encoder = Whole::new(weights, residence, move |weights| Encoder::load(weights, &of_encoder));
        let between = weights.bytes();
        let decoder = Whole::new(weights, residence, move |weights| Decoder::load(weights, &of_decoder));
        let [first, second] = [between - before, weights.bytes() - between];
        let sizes = Sizes { total: first + second, largest: first.max(second), ..Sizes::default() };
        Self { encoder, decoder, sizes, config }
    }

    /// The bytes of both halves on the device, and of the larger one.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// About the most memory that decoding or encoding an image of this many pixels takes beside the weights, in bytes, in f32. Of
    /// tensors of full size with the first level's channels 5.2 to 5.7 were measured, or half as many with the second level's, which
    /// are twice as many. In bands one of the first level's is kept, and some bands.
    pub fn bytes_of_image(&self, [width, height]: [usize; 2], limits: &Limits) -> u64 {
        let channels = &self.config.block_out_channels;
        let (first, widest) = (channels[0], *channels.get(1).unwrap_or(&channels[0]));
        let values = match limits.vae_rows {
            Some(rows) if rows < height => width * height * first + 7 * rows * width * widest,
            _ => width * height * widest.max(2 * first) * 11 / 4,
        };
        4 * values as u64
    }

    /// Images to the distribution of their latents.
    ///
    /// `pixels` `[B, 3, H, W]` in [-1, 1], both sides divisible by [`downsampling`](Self::downsampling); the result is in
    /// the dtype of the weights.
    pub fn encode(&self, pixels: Tensor<4>) -> Moments {
        self.encode_within(pixels, &Limits::NONE)
    }

    /// The same within limits. On the CPU in f32 no limit changes a bit; elsewhere bands may differ by rounding.
    pub fn encode_within(&self, pixels: Tensor<4>, limits: &Limits) -> Moments {
        let (encoder, height) = (self.encoder.lend(), pixels.dims()[2]);
        Moments::from_tensor(by_images(pixels, limits, |pixels| match limits.vae_rows {
            Some(rows) if rows < height => encoder.forward_bands(pixels, rows),
            _ => encoder.forward(pixels),
        }))
    }

    /// Raw (not scaled) latents `[B, C, h, w]` to images `[B, 3, H, W]`, about in [-1, 1], in the dtype of the weights.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_within(latents, &Limits::NONE)
    }

    /// The same within limits. On the CPU in f32 no limit changes a bit; elsewhere bands may differ by rounding.
    pub fn decode_within(&self, latents: Tensor<4>, limits: &Limits) -> Tensor<4> {
        let (decoder, height) = (self.decoder.lend(), latents.dims()[2] * self.downsampling());
        by_images(latents, limits, |latents| match limits.vae_rows {
            Some(rows) if rows < height => decoder.forward_bands(latents, rows),
            _ => decoder.forward(latents),
        })
    }

    /// The scale between raw latents and those of a diffusion model.
    pub fn latent_scale(&self) -> LatentScale {
        LatentScale { shift: self.config.shift_factor.unwrap_or(0.0), factor: self.config.scaling_factor }
    }

    /// The number of pixels along each side of a latent pixel.
    pub fn downsampling(&self) -> usize {
        self.config.downsampling()
    }

    /// The channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }
}

/// `f` of a few images of a batch at a time, if there is a limit.
fn by_images(batch: Tensor<4>, limits: &Limits, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    match limits.vae_images {
        Some(most) if most < batch.dims()[0] => {
            Tensor::cat(batch.split(most.max(1), 0).into_iter().map(f).collect(), 0)
        }
        _ => f(batch),
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

    /// The mode: the mean.
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
