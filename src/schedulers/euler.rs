//! Euler's method along the ratio of noise to signal: algorithm 2 of Karras et al. 2022 without churn.

use burn::tensor::Tensor;
use serde_json::json;

use super::{
    Run, Scheduler, SchedulerConfig,
    euler_run::EulerRun,
    sigmas::{Curve, FinalSigma},
};
use crate::error::Result;

/// EulerDiscreteScheduler.
#[derive(Clone, Debug)]
pub struct Euler(EulerRun);

impl Euler {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.accept(&[
            ("sigma_min", &[]),
            ("sigma_max", &[]),
            ("interpolation_type", &[json!("linear")]),
            ("timestep_type", &[json!("discrete")]),
        ])?;
        let levels = Curve::of(config)?;
        Ok(Self(EulerRun::new(config, steps, levels, config.get("final_sigmas_type", FinalSigma::Zero)?)?))
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.0.sigmas
    }
}

impl Scheduler for Euler {
    fn run(&self) -> &dyn Run {
        &self.0
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        self.0.step(prediction, index, latents, self.0.sigmas[index + 1])
    }
}
