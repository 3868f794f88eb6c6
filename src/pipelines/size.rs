//! The image sizes that a model supports.

use crate::{
    error::{Error, Result},
    models::vae::VaeConfig,
};

/// The longest side of a generated image in pixels. Memory grows with the area, and in attention with its square.
pub const LARGEST_SIDE: usize = 8192;

/// Image sizes in pixels, from the configuration of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSizes {
    /// Each side must be a multiple of this.
    pub step: usize,
    /// The native size: the side of a square image.
    pub native: usize,
    /// The pixels, along each side, of one latent pixel.
    pub latent_pixel: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
}

impl ImageSizes {
    /// The sizes of a VAE and a denoiser with patches of `patch` × `patch` latent pixels and a native size of `side` latent pixels
    /// squared.
    pub(super) fn new(vae: &VaeConfig, patch: usize, side: usize) -> Self {
        let latent_pixel = vae.downsampling();
        let latent_channels = vae.latent_channels;
        Self { step: patch * latent_pixel, native: side * latent_pixel, latent_pixel, latent_channels }
    }

    /// # Errors
    /// A side is zero, not a multiple of [`step`](Self::step), or longer than [`LARGEST_SIDE`].
    pub fn check(&self, width: usize, height: usize) -> Result<()> {
        for (field, side) in [("width", width), ("height", height)] {
            if side > LARGEST_SIDE {
                let problem = format!("{side} is more than the {LARGEST_SIDE} pixels of the largest side");
                return Err(Error::setting(field, problem));
            }
            if side == 0 || !side.is_multiple_of(self.step) {
                let near = ((side as f64 / self.step as f64).round() as usize).max(1) * self.step;
                let problem = format!("{side} is not a multiple of {}", self.step);
                return Err(Error::setting(field, problem).hint(format!("use {near}")));
            }
        }
        Ok(())
    }
}
