//! Noise schedules and samplers, one file each.
//!
//! FLUX.1 has [`flow_match`]. Stable Diffusion has a [`NoiseSchedule`] to train with and any [`Scheduler`] to sample with; both
//! come from one [`SchedulerConfig`].

mod curve;
mod run;
pub mod flow_match;
mod level;
mod noise_schedule;
mod spacing;
mod config;
mod alpha_run;
pub mod ddim;
pub mod ddpm;
pub mod lcm;
pub mod pndm;
mod sigmas;
mod ratio_run;
mod euler_run;
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
pub use run::Run;

/// A sampler of Stable Diffusion, set up for a run of so many steps: it leads from noise to latents.
///
/// `index` counts the calls of the model, from 0; an image-to-image run starts at a later one, and goes on one by one. All
/// tensors are f32 `[B, C, h, w]`.
pub trait Scheduler: Debug {
    /// Its timesteps, and how noisy latents are at each.
    fn run(&self) -> &dyn Run;

    /// The number of model calls per step, except the last.
    fn calls_per_step(&self) -> usize {
        1
    }

    /// The latents after call `index`, whose `prediction` is the model's. `noise` is called for standard normal noise of the
    /// latents' shape, once or not at all, where the sampler adds some.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;

    /// See [`Run::timesteps`].
    fn timesteps(&self) -> &[f64] {
        self.run().timesteps()
    }

    /// See [`Run::init_noise_sigma`].
    fn init_noise_sigma(&self) -> f64 {
        self.run().init_noise_sigma()
    }

    /// See [`Run::scale_model_input`].
    fn scale_model_input(&self, latents: Tensor<4>, index: usize) -> Tensor<4> {
        self.run().scale_model_input(latents, index)
    }

    /// See [`Run::add_noise`].
    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        self.run().add_noise(latents, noise, index)
    }
}
