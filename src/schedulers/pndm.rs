//! Pseudo linear multistep (Liu et al. 2022): DDIM's step with a prediction extrapolated from the last four.

use burn::tensor::Tensor;

use super::{NoiseSchedule, Run, Scheduler, SchedulerConfig, alpha_run::AlphaRun, spacing::TimestepSpacing};
use crate::error::Result;

/// PNDMScheduler without Runge-Kutta steps (`skip_prk_steps`). Its first step takes two calls of the model.
#[derive(Clone, Debug)]
pub struct Pndm {
    run: AlphaRun,
    stride: i64,
    last: f64,
    /// Calls so far.
    calls: usize,
    /// The latents before the first step.
    start: Option<Tensor<4>>,
    /// Predictions, the newest last; at most four.
    past: Vec<Tensor<4>>,
}

impl Pndm {
    /// # Errors
    /// The file asks for Runge-Kutta steps, or has too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        if !config.get("skip_prk_steps", false)? {
            return Err(config.refuse("skip_prk_steps"));
        }
        let mut timesteps = config.timesteps(steps, 0, TimestepSpacing::Leading)?;
        if let Some(&second) = timesteps.get(1) {
            timesteps.insert(1, second);
        }
        let schedule = NoiseSchedule::new(&config.betas, false); // this class cannot rescale them
        Ok(Self {
            stride: (schedule.alphas_cumprod.len() / steps) as i64,
            last: if config.get("set_alpha_to_one", false)? { 1.0 } else { schedule.alpha(0) },
            run: AlphaRun { schedule, timesteps, prediction_type: config.prediction_type },
            calls: 0,
            start: None,
            past: vec![],
        })
    }
}

impl Scheduler for Pndm {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        mut latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let mut timestep = self.run.timestep(index);
        let prediction = match (self.calls, self.start.take()) {
            // The second call takes the first step again, with the mean of both ends.
            (1, Some(start)) => {
                timestep += self.stride;
                latents = start;
                (prediction + self.past[0].clone()) / 2.0
            }
            (calls, _) => {
                if calls == 0 {
                    self.start = Some(latents.clone());
                }
                self.past.push(prediction);
                extrapolate(&mut self.past)
            }
        };
        self.calls += 1;
        let AlphaRun { schedule, prediction_type, .. } = &self.run;
        let level = schedule.level(timestep);
        let clean = level.latents(*prediction_type, prediction.clone(), latents.clone());
        let noise = level.noise(*prediction_type, prediction, latents);
        schedule.level_or(timestep - self.stride, self.last).mix(clean, noise)
    }
}

/// Adams-Bashforth of as high an order as there are predictions, up to four; older ones are dropped.
fn extrapolate(past: &mut Vec<Tensor<4>>) -> Tensor<4> {
    past.drain(..past.len().saturating_sub(4));
    let weights: &[f64] = match past.len() {
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    };
    let terms = past.iter().rev().zip(weights).map(|(prediction, weight)| prediction.clone() * *weight);
    terms.reduce(|sum, term| sum + term).expect("a prediction was just pushed")
}
