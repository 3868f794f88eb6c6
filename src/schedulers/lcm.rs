//! Sampling of latent consistency models (Luo et al. 2023, arXiv 2310.04378): each call gives clean latents, which are made noisy again
//! for the next.

use burn::tensor::Tensor;
use serde_json::json;

use super::{Run, Scheduler, SchedulerConfig, alpha_run::AlphaRun};
use crate::error::{Error, Result};

/// The standard deviation of the data that the boundary condition counts with.
const SIGMA_DATA: f64 = 0.5;

/// LCMScheduler.
#[derive(Clone, Debug)]
pub struct Lcm {
    run: AlphaRun,
    timestep_scaling: f64,
}

impl Lcm {
    /// # Errors
    /// The file has a setting that this sampler lacks, or there are more steps than the model was distilled with.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let no = [json!(false)];
        config.accept(&[("thresholding", &no), ("clip_sample", &no)])?;
        let (levels, distilled) = (config.levels(), config.get("original_inference_steps", 50usize)?);
        if steps == 0 || steps > distilled || distilled > levels {
            let problem = format!("{steps} steps, but the model was distilled with {distilled}");
            return Err(
                Error::setting("steps", problem).hint(format!("use 1 to {}; 4 to 8 are usual", distilled.min(levels)))
            );
        }
        let skip = levels / distilled;
        // Even places among the timesteps of the distillation, from the most noise on.
        let place = |i: usize| (i as f64 * (distilled as f64 / steps as f64)).floor() as usize;
        let timestep = |i: usize| ((distilled - place(i)) * skip - 1) as f64;
        Ok(Self {
            run: AlphaRun {
                schedule: config.noise_schedule(),
                timesteps: (0..steps).map(timestep).collect(),
                prediction_type: config.prediction_type,
            },
            timestep_scaling: config.get("timestep_scaling", 10.0)?,
        })
    }
}

impl Scheduler for Lcm {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    /// The consistency function `c_out·clean + c_skip·latents` (equation 9), noisy as the next call wants it.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let AlphaRun { schedule, timesteps, prediction_type } = &self.run;
        let clean = self.run.level(index).latents(*prediction_type, prediction, latents.clone());
        let scaled = timesteps[index] * self.timestep_scaling;
        let size = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let denoised = clean * (scaled / size.sqrt()) + latents * (SIGMA_DATA * SIGMA_DATA / size);
        match timesteps.get(index + 1) {
            Some(&next) => schedule.level(next as i64).mix(denoised, noise()),
            None => denoised,
        }
    }
}
