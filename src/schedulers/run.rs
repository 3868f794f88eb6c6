//! The timesteps and noise levels of a sampling run.

use burn::tensor::Tensor;

/// The timesteps of a run, and how noisy its latents are at each of them.
///
/// `index` counts the calls of the model, from 0. All tensors are f32 `[B, C, h, w]`.
pub trait Run {
    /// The timestep of each model call, from most to least noise.
    fn timesteps(&self) -> &[f64];

    /// The scale of the initial standard normal noise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The latents as the model wants them at call `index`: as they are, unless their size grows with the noise.
    fn scale_model_input(&self, latents: Tensor<4>, _index: usize) -> Tensor<4> {
        latents
    }

    /// Clean latents mixed with standard normal `noise` as much as they are before call `index`.
    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4>;
}
