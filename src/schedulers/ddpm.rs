//! Ancestral sampling (Ho et al. 2020).

use burn::tensor::Tensor;
use serde_json::json;

use super::{Run, Scheduler, SchedulerConfig, alpha_run::AlphaRun, ddim::clip, spacing::TimestepSpacing};
use crate::error::Result;

/// DDPMScheduler.
#[derive(Clone, Debug)]
pub struct Ddpm {
    run: AlphaRun,
    clip: Option<f64>,
    fixed_large: bool,
}

impl Ddpm {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let variances = [json!("fixed_small"), json!("fixed_large")];
        config.accept(&[("thresholding", &[json!(false)]), ("variance_type", &variances)])?;
        Ok(Self {
            run: AlphaRun {
                schedule: config.noise_schedule(),
                timesteps: config.timesteps(steps, 0, TimestepSpacing::Leading)?,
                prediction_type: config.prediction_type,
            },
            clip: clip(config)?,
            fixed_large: config.get("variance_type", String::new())? == "fixed_large",
        })
    }
}

impl Scheduler for Ddpm {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    /// Equations 6 and 7: the mean of what came before, given the clean latents, and its variance.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let AlphaRun { schedule, timesteps, prediction_type } = &self.run;
        let timestep = self.run.timestep(index);
        let mut clean = self.run.level(index).latents(*prediction_type, prediction, latents.clone());
        if let Some(range) = self.clip {
            clean = clean.clamp(-range, range);
        }
        let total = schedule.alpha(timestep);
        let total_next = timesteps.get(index + 1).map_or(1.0, |&next| schedule.alpha(next as i64));
        let (alpha, left) = (total / total_next, (1.0 - total_next) / (1.0 - total));
        let beta = 1.0 - alpha;
        let mean = clean * (total_next.sqrt() * beta / (1.0 - total)) + latents * (alpha.sqrt() * left);
        if timestep == 0 {
            return mean;
        }
        let variance = if self.fixed_large { beta } else { (left * beta).max(1e-20) };
        mean + noise() * variance.sqrt()
    }
}
