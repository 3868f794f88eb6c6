//! Deterministic implicit sampling (Song et al. 2021), with `eta` 0.

use burn::tensor::Tensor;
use serde_json::json;

use super::{Run, Scheduler, SchedulerConfig, alpha_run::AlphaRun, spacing::TimestepSpacing};
use crate::error::Result;

/// DDIMScheduler.
#[derive(Clone, Debug)]
pub struct Ddim {
    run: AlphaRun,
    clip: Option<f64>,
    /// From a timestep to the next.
    stride: i64,
    /// The share of the signal's variance after the last step.
    last: f64,
}

/// How far clean latents may be from 0: a setting of DDPM and DDIM.
pub(super) fn clip(config: &SchedulerConfig) -> Result<Option<f64>> {
    let range = config.get("clip_sample_range", 1.0)?;
    Ok(config.get("clip_sample", true)?.then_some(range))
}

impl Ddim {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.accept(&[("thresholding", &[json!(false)])])?;
        let schedule = config.noise_schedule();
        let timesteps = config.timesteps(steps, 0, TimestepSpacing::Leading)?;
        Ok(Self {
            clip: clip(config)?,
            stride: (schedule.alphas_cumprod.len() / steps) as i64,
            last: if config.get("set_alpha_to_one", true)? { 1.0 } else { schedule.alpha(0) },
            run: AlphaRun { schedule, timesteps, prediction_type: config.prediction_type },
        })
    }
}

impl Scheduler for Ddim {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    /// Equation 12: the same noise in the same latents, but less of it.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let AlphaRun { schedule, prediction_type, .. } = &self.run;
        let level = self.run.level(index);
        let mut clean = level.latents(*prediction_type, prediction.clone(), latents.clone());
        if let Some(range) = self.clip {
            clean = clean.clamp(-range, range);
        }
        let noise = level.noise(*prediction_type, prediction, latents);
        schedule.level_or(self.run.timestep(index) - self.stride, self.last).mix(clean, noise)
    }
}
