//! Flow matching with Euler steps (Lipman et al. 2023; Esser et al. 2024): FLUX.1's schedule.
//!
//! `noisy = (1 - sigma)·latents + sigma·noise`, and the model predicts `velocity = noise - latents`. Both signs are fixed
//! here and nowhere else.

use std::path::Path;

use burn::tensor::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Run, Scheduler, curve};
use crate::{
    error::{Error, Result},
    notice::{some_of, warn_once},
    weights::read_json,
};

/// The most steps of a run: ten times as many as there are levels to train on.
pub const MOST_STEPS: usize = 10_000;

/// FlowMatchEulerDiscreteScheduler: `scheduler/scheduler_config.json`, with diffusers' defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlowMatchEuler {
    /// Levels of the training table.
    pub num_train_timesteps: usize,
    /// The static shift, used when shifting is not dynamic.
    pub shift: f64,
    /// Whether the shift grows with the number of image tokens (dev) or not (schnell).
    pub use_dynamic_shifting: bool,
    /// `mu` at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// `mu` at `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Tokens of a 256² image.
    pub base_image_seq_len: usize,
    /// Tokens of a 1024² image.
    pub max_image_seq_len: usize,
    /// The kind of dynamic shift.
    pub time_shift_type: TimeShift,
    /// The last level before the end, to which the others are stretched; `None` and 0 stretch nothing.
    pub shift_terminal: Option<f64>,
    /// Whether the levels between the ends are even in their seventh root.
    pub use_karras_sigmas: bool,
    /// Whether the levels between the ends are even in their logarithm.
    pub use_exponential_sigmas: bool,
    /// Whether the levels between the ends are quantiles of a beta distribution.
    pub use_beta_sigmas: bool,
    /// Whether each step goes to the clean latents and back with fresh noise.
    pub stochastic_sampling: bool,
    /// Whether levels are counted from the other end, which no FLUX model does: refused when a file is read.
    pub invert_sigmas: bool,
}

/// The kind of dynamic shift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    /// `e^mu`.
    #[default]
    Exponential,
    /// `mu`.
    Linear,
}

const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// The settings of the class.
const SETTINGS: [&str; 16] = [
    "num_train_timesteps",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
    "invert_sigmas",
    "_class_name",
    "_diffusers_version",
];

impl Default for FlowMatchEuler {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            stochastic_sampling: false,
            invert_sigmas: false,
        }
    }
}

/// Moves noise levels up: `s·sigma / (1 + (s - 1)·sigma)`. A shift of 1 changes nothing; larger images want larger ones.
pub fn shift_sigma(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

impl FlowMatchEuler {
    /// Reads `scheduler_config.json` of a pipeline's `scheduler/` folder. Settings that the class does not have are said, once:
    /// they change nothing, in diffusers either.
    ///
    /// # Errors
    /// The file is missing or not of this form, of another class, or has a setting that cannot be used.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let file = folder.as_ref().join("scheduler_config.json");
        let mut settings: Map<String, Value> = read_json(&file)?;
        settings.retain(|_, value| !value.is_null()); // as if it were not there
        let unknown: Vec<_> = settings.keys().filter(|key| !SETTINGS.contains(&key.as_str())).collect();
        let said = (!unknown.is_empty()).then(|| format!("{}: {}", unknown.len(), some_of(&unknown)));
        let refused = |problem: String| {
            let hint = "replace this file with the scheduler_config.json of the FLUX.1 model itself";
            Error::file(&file, problem).hint(hint)
        };
        if let Some(class) = settings.get("_class_name").filter(|class| *class != CLASS) {
            return Err(refused(format!("`_class_name` is {class}, which is not supported for FLUX.1, only {CLASS}")));
        }
        let scheduler: Self =
            serde_json::from_value(Value::Object(settings)).map_err(|e| Error::file(&file, e.to_string()))?;
        scheduler.check().map_err(refused)?;
        if let Some(unknown) = said {
            warn_once(format!(
                "{}: settings that {CLASS} does not have and that have no effect, {unknown}",
                file.display()
            ));
        }
        Ok(scheduler)
    }

    /// One sentence about what cannot be used.
    fn check(&self) -> std::result::Result<(), String> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, why: &str| Err(format!("`{key}` is {value}, {why}"));
        if self.invert_sigmas {
            return refuse("invert_sigmas", &true, "which no FLUX model is sampled with: it is not supported");
        }
        if !(1..=100_000).contains(&self.num_train_timesteps) {
            return refuse("num_train_timesteps", &self.num_train_timesteps, "not 1 to 100000");
        }
        for (key, value) in [("base_shift", self.base_shift), ("max_shift", self.max_shift)] {
            if !(value.is_finite() && value.abs() <= 100.0) {
                return refuse(key, &value, "not a number from -100 to 100");
            }
        }
        if !(self.shift.is_finite() && self.shift > 0.0) {
            return refuse("shift", &self.shift, "not a number above 0");
        }
        if self.base_image_seq_len >= self.max_image_seq_len {
            return refuse("base_image_seq_len", &self.base_image_seq_len, "not below `max_image_seq_len`");
        }
        if let Some(terminal) = self.shift_terminal.filter(|terminal| !(0.0..1.0).contains(terminal)) {
            return refuse("shift_terminal", &terminal, "not from 0 to below 1");
        }
        let curves = [self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas];
        match curves.into_iter().filter(|on| *on).count() {
            0 | 1 => Ok(()),
            _ => Err("only one of `use_karras_sigmas`, `use_exponential_sigmas`, `use_beta_sigmas` can be true".into()),
        }
    }

    /// The shift for an image of `image_tokens` tokens, whether or not the scheduler shifts by size: `e^mu` (or `mu`, as
    /// `time_shift_type` says), with `mu` linear in the number of tokens. 1024² gives 3.158 for FLUX.1.
    pub fn resolution_shift(&self, image_tokens: usize) -> f64 {
        match self.time_shift_type {
            TimeShift::Exponential => self.mu(image_tokens).exp(),
            TimeShift::Linear => self.mu(image_tokens),
        }
    }

    /// `mu` for an image of `image_tokens` tokens.
    pub fn mu(&self, image_tokens: usize) -> f64 {
        let (x0, x1) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        self.base_shift + (self.max_shift - self.base_shift) * (image_tokens as f64 - x0) / (x1 - x0)
    }

    /// The table that training may draw from, from most to least noise. It is not shifted when shifting is dynamic.
    pub fn training_sigmas(&self) -> Vec<f32> {
        let shift = if self.use_dynamic_shifting { 1.0 } else { self.shift };
        let levels = self.num_train_timesteps;
        (1..=levels).rev().map(|t| shift_sigma(t as f64 / levels as f64, shift) as f32).collect()
    }

    /// The noise levels of a run of `steps` steps, from 1 down, and a final 0.
    pub fn inference_sigmas(&self, steps: usize, image_tokens: usize) -> Vec<f32> {
        let shift = if self.use_dynamic_shifting { self.resolution_shift(image_tokens) } else { self.shift };
        let last = 1.0 / steps as f64;
        let even = |i: usize| if steps == 1 { 1.0 } else { 1.0 + (last - 1.0) * i as f64 / (steps - 1) as f64 };
        let mut sigmas: Vec<f64> = (0..steps).map(|i| shift_sigma(even(i), shift)).collect();
        let (Some(&most), Some(&least)) = (sigmas.first(), sigmas.last()) else { return vec![0.0] };
        let mut least = least;
        if let Some(terminal) = self.terminal() {
            // The distances from pure noise, all by the one factor that ends them at the terminal level.
            let factor = (1.0 - least) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / factor);
            least = terminal;
        }
        if self.use_karras_sigmas {
            sigmas = curve::karras(least, most, steps);
        } else if self.use_exponential_sigmas {
            sigmas = curve::exponential(least, most, steps);
        } else if self.use_beta_sigmas {
            sigmas = curve::beta(least, most, steps);
        }
        sigmas.into_iter().map(|sigma| sigma as f32).chain([0.0]).collect()
    }

    /// The terminal level that the levels are stretched to, if any.
    fn terminal(&self) -> Option<f64> {
        self.shift_terminal.filter(|&terminal| terminal != 0.0)
    }

    /// Checks that a run can have so many steps.
    ///
    /// # Errors
    /// There are none or too many, or the one step cannot end at `shift_terminal`.
    pub fn check_steps(&self, steps: usize) -> Result<()> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::setting("steps", format!("is {steps}: use 1 to {MOST_STEPS}")));
        }
        if steps == 1 && self.terminal().is_some() {
            let problem =
                "is 1, and the scheduler's `shift_terminal` stretches the levels between the first and the last";
            return Err(Error::setting("steps", problem).hint("use at least 2"));
        }
        Ok(())
    }

    /// The part of [`inference_sigmas`](Self::inference_sigmas) that an image-to-image run goes through when it may change
    /// the share `strength` (0 to 1) of an image.
    pub fn image_to_image_sigmas(&self, steps: usize, image_tokens: usize, strength: f64) -> Vec<f32> {
        let run = (steps as f64 * strength).min(steps as f64);
        let start = (steps as f64 - run).max(0.0) as usize;
        self.inference_sigmas(steps, image_tokens).split_off(start)
    }

    /// The sampler of such a run: all of it with `strength` 1.
    ///
    /// # Errors
    /// As [`check_steps`](Self::check_steps).
    pub fn run(&self, steps: usize, image_tokens: usize, strength: f64) -> Result<FlowMatchRun> {
        self.check_steps(steps)?;
        let sigmas = self.image_to_image_sigmas(steps, image_tokens, strength);
        let timesteps = sigmas[..sigmas.len() - 1].iter().map(|&sigma| f64::from(sigma)).collect();
        Ok(FlowMatchRun { sigmas, timesteps, stochastic: self.stochastic_sampling })
    }
}

/// Euler steps through given noise levels. What the model is told at each call is the level itself.
#[derive(Clone, Debug)]
pub struct FlowMatchRun {
    sigmas: Vec<f32>,
    timesteps: Vec<f64>,
    stochastic: bool,
}

impl Run for FlowMatchRun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, index: usize) -> Tensor<4> {
        let sigma = Tensor::full([latents.dims()[0]], self.sigmas[index], &latents.device());
        add_noise(latents, noise, sigma)
    }
}

impl Scheduler for FlowMatchRun {
    fn run(&self) -> &dyn Run {
        self
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (sigma, next) = (self.sigmas[index], self.sigmas[index + 1]);
        if !self.stochastic {
            return step(latents, prediction, sigma, next);
        }
        let clean = latents - prediction * f64::from(sigma);
        clean * f64::from(1.0 - next) + noise() * f64::from(next)
    }
}

/// `(1 - sigma)·latents + sigma·noise`, with one `sigma` `[B]` for each row of the batch.
pub fn add_noise<const D: usize>(latents: Tensor<D>, noise: Tensor<D>, sigma: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = sigma.dims()[0];
    let sigma = sigma.reshape(shape);
    latents * (sigma.clone().neg() + 1.0) + noise * sigma
}

/// `noise - latents`, what the model learns to predict.
pub fn velocity<const D: usize>(latents: Tensor<D>, noise: Tensor<D>) -> Tensor<D> {
    noise - latents
}

/// One Euler step from noise level `sigma` to `next`.
pub fn step<const D: usize>(sample: Tensor<D>, velocity: Tensor<D>, sigma: f32, next: f32) -> Tensor<D> {
    sample + velocity * f64::from(next - sigma)
}
