//! Noise schedules and samplers, one file each.
//!
//! FLUX.1 has [`flow_match`]. Stable Diffusion has a [`NoiseSchedule`] to train with and any [`Scheduler`] to sample with; both
//! come from one [`SchedulerConfig`].

mod curve;
pub mod flow_match;
mod level;
mod noise_schedule;
mod spacing;
mod config;
pub mod ddim;
pub mod ddpm;
pub mod lcm;
pub mod pndm;
mod sigmas;
pub mod dpm_solver;
pub mod euler;
pub mod euler_ancestral;
pub mod heun;
pub mod uni_pc;
mod sampler;

use std::fmt::Debug;

use burn::tensor::Tensor;

pub use config::{SchedulerConfig, SchedulerName};
pub use flow_match::{FlowMatchEuler, FlowMatchRun};
pub use level::{Level, PredictionType};
pub use noise_schedule::NoiseSchedule;

/// A sampler of Stable Diffusion, set up for a run of so many steps: it leads from noise to latents.
///
/// `index` counts the calls of the model, from 0; an image-to-image run starts at a later one, and goes on one by one. All
/// tensors are f32 `[B, C, h, w]`.
pub trait Scheduler: Debug {
    /// What the model is told at each of its calls, from most to least noise.
    fn timesteps(&self) -> &[f64];

    /// How often each step but the last calls the model.
    fn calls_per_step(&self) -> usize {
        1
    }

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

    /// The latents after call `index`, whose `prediction` is the model's. `noise` is called for standard normal noise of the
    /// latents' shape, once or not at all, where the sampler adds some.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;
}
