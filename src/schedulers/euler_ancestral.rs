//! Euler's method that removes more noise than asked for and adds fresh noise instead (k-diffusion, Crowson 2022).

use burn::tensor::Tensor;

use super::{Run, Scheduler, SchedulerConfig, euler_run::EulerRun, sigmas::FinalSigma};
use crate::error::Result;

/// EulerAncestralDiscreteScheduler.
#[derive(Clone, Debug)]
pub struct EulerAncestral(EulerRun);

impl EulerAncestral {
    /// # Errors
    /// The file has too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        Ok(Self(EulerRun::new(config, steps, None, FinalSigma::Zero)?))
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.0.sigmas
    }
}

impl Scheduler for EulerAncestral {
    fn run(&self) -> &dyn Run {
        &self.0
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (from, to) = (self.0.sigmas[index], self.0.sigmas[index + 1]);
        // `to² = down² + fresh²`, and `fresh` is what DDPM would add between these levels.
        let fresh = to * (1.0 - (to / from).powi(2)).sqrt();
        let down = to * to / from;
        self.0.step(prediction, index, latents, down) + noise() * fresh
    }
}
