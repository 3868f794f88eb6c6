//! The sizes of images that a model works at.

use crate::{
    error::{Error, Result},
    models::vae::VaeConfig,
};

/// The longest side of an image that is made, in pixels. Memory grows with the area, and in attention with its square.
pub const LARGEST_SIDE: usize = 8192;

/// Sizes in pixels, as the configuration of a model tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSizes {
    /// A multiple of this must be each side.
    pub step: usize,
    /// The side of a square as large as the images that the model was made for.
    pub native: usize,
    /// The pixels, along each side, of one latent pixel.
    pub latent_pixel: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
}

impl ImageSizes {
    /// Those of a VAE in front of a denoiser that reads `patch` × `patch` latent pixels together, and was made for squares of
    /// `side` latent pixels.
    pub(super) fn new(vae: &VaeConfig, patch: usize, side: usize) -> Self {
        let latent_pixel = vae.downsampling();
        let latent_channels = vae.latent_channels;
        Self { step: patch * latent_pixel, native: side * latent_pixel, latent_pixel, latent_channels }
    }

    /// # Errors
    /// A side is zero, no multiple of [`step`](Self::step), or longer than [`LARGEST_SIDE`].
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
