//! What a run of a sampler knows before its first step.

use burn::tensor::Tensor;

/// The timesteps of a run, and how noisy its latents are at each of them.
///
/// `index` counts the calls of the model, from 0. All tensors are f32 `[B, C, h, w]`.
pub trait Run {
    /// What the model is told at each of its calls, from most to least noise.
    fn timesteps(&self) -> &[f64];

    /// What standard normal noise is multiplied by to start from.
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
