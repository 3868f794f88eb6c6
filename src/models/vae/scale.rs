//! From raw latents to the values a diffusion model sees, and back.

use burn::tensor::Tensor;

/// The affine map between raw and scaled latents: the only place that knows shift and factor.
///
/// FLUX.1: shift 0.1159, factor 0.3611. SD 1.x: shift 0, factor 0.18215. Read from the VAE's config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentScale {
    /// Taken off first.
    pub shift: f64,
    /// Multiplied with afterwards.
    pub factor: f64,
}

impl LatentScale {
    /// Raw latents → scaled latents, `[B, C, h, w]`.
    pub fn normalize(&self, latents: Tensor<4>) -> Tensor<4> {
        (latents - self.shift) * self.factor
    }

    /// Scaled latents → raw latents, `[B, C, h, w]`.
    pub fn denormalize(&self, latents: Tensor<4>) -> Tensor<4> {
        latents / self.factor + self.shift
    }
}
