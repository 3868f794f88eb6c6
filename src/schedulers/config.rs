//! `scheduler_config.json`: the noise schedule a model was trained with, and how its makers sampled.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{NoiseSchedule, PredictionType, noise_schedule::BetaSchedule, spacing::TimestepSpacing};
use crate::{
    error::{Error, Result},
    notice::{some_of, warn_once},
};

/// The samplers of Stable Diffusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum SchedulerName {
    /// Ancestral sampling, as in training; wants many steps.
    Ddpm,
    /// Deterministic steps.
    Ddim,
    /// Linear multistep: the default of Stable Diffusion 1.
    Pndm,
    /// Euler's method.
    Euler,
    /// Euler's method with fresh noise: the default of InstructPix2Pix.
    EulerAncestral,
    /// DPM-Solver++, multistep: good in 20 steps.
    DpmSolver,
    /// DPM-Solver++ with the noise levels of Karras et al. 2022.
    DpmSolverKarras,
    /// UniPC, a predictor-corrector: good in 10 steps.
    UniPc,
    /// Heun's method: two model calls per step.
    Heun,
    /// For latent consistency models and their LoRAs: 4 to 8 steps.
    Lcm,
}

/// `scheduler_config.json`.
///
/// Each sampler reads the settings it knows when it is made; what the file does not have takes the default of the sampler's
/// class in diffusers. So a sampler chosen by name sees what diffusers' `from_config` would give it.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// The sampler; `None` where the file names one that this program lacks. Training needs none.
    pub name: Option<SchedulerName>,
    /// The prediction type of the model.
    pub prediction_type: PredictionType,
    pub(super) betas: Vec<f32>,
    zero_terminal: bool,
    file: PathBuf,
    settings: Map<String, Value>,
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json` of a pipeline's `scheduler/` folder.
    ///
    /// # Errors
    /// The file is missing, no JSON, or its noise schedule cannot be used.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let file = folder.as_ref().join("scheduler_config.json");
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        let config = Self::parse(file, &text)?;
        config.say_unused();
        Ok(config)
    }

    /// Says once which settings are those of other classes only: as in diffusers, they change nothing.
    fn say_unused(&self) {
        let sigmas = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
        let solver = ["use_lu_lambdas", "use_flow_sigmas", "thresholding", "use_dynamic_shifting"];
        let flow = ["shift_terminal", "stochastic_sampling", "invert_sigmas"];
        let own: &[&str] = match self.name {
            None => return, // nothing is sampled as the file says
            Some(SchedulerName::Ddpm | SchedulerName::Ddim) => &["thresholding"],
            Some(SchedulerName::Pndm | SchedulerName::EulerAncestral) => &[],
            Some(SchedulerName::Euler | SchedulerName::Heun) => &sigmas,
            Some(SchedulerName::Lcm) => &["thresholding"],
            Some(SchedulerName::UniPc) => {
                &[sigmas.as_slice(), &["thresholding", "use_flow_sigmas", "use_dynamic_shifting"]].concat()
            }
            Some(SchedulerName::DpmSolver | SchedulerName::DpmSolverKarras) => &[sigmas.as_slice(), &solver].concat(),
        };
        let is_on = |key: &str| self.settings.get(key).is_some_and(|value| *value != Value::Bool(false) && *value != 0);
        let unused = sigmas.iter().chain(&solver).chain(&flow).copied().filter(|key| !own.contains(key) && is_on(key));
        let unused: Vec<&str> = unused.collect();
        if !unused.is_empty() {
            let class = self.settings.get("_class_name").and_then(Value::as_str).unwrap_or_default();
            let (count, names) = (unused.len(), some_of(&unused));
            warn_once(format!(
                "{}: settings that {class} does not have and that have no effect, as in diffusers: {count} ({names})",
                self.file.display()
            ));
        }
    }

    /// Reads the `text` of such a `file`.
    ///
    /// # Errors
    /// It is no JSON, or its noise schedule cannot be used; the message names the file.
    pub fn parse(file: impl Into<PathBuf>, text: &str) -> Result<Self> {
        let file = file.into();
        // Python writes a number that JSON does not have: the `lambda_min_clipped` of diffusers.
        let text = text.replace("-Infinity", "null");
        let mut settings: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| Error::file(&file, e.to_string()))?;
        settings.retain(|_, value| !value.is_null()); // as if it were not there
        let config = Self {
            name: None,
            prediction_type: PredictionType::Epsilon,
            betas: vec![],
            zero_terminal: false,
            file,
            settings,
        };
        Ok(Self {
            name: config.class()?,
            prediction_type: config.get("prediction_type", PredictionType::Epsilon)?,
            zero_terminal: config.zero_terminal()?,
            betas: config.betas()?,
            ..config
        })
    }

    /// The same model with another sampler.
    pub fn with_name(&self, name: SchedulerName) -> Self {
        Self { name: Some(name), ..self.clone() }
    }

    /// The noise schedule to train with.
    pub fn noise_schedule(&self) -> NoiseSchedule {
        NoiseSchedule::new(&self.betas, self.zero_terminal)
    }

    /// The number of timesteps of the schedule.
    pub(super) fn levels(&self) -> usize {
        self.betas.len()
    }

    /// A setting, or a default.
    ///
    /// # Errors
    /// It is of another type.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        let Some(value) = self.settings.get(key) else { return Ok(default) };
        T::deserialize(value).map_err(|e| Error::file(&self.file, format!("`{key}`: {e}")))
    }

    /// Refuses what a sampler lacks: each setting may be missing or have one of the values.
    pub(super) fn accept(&self, known: &[(&str, &[Value])]) -> Result<()> {
        match known.iter().find(|(key, values)| self.settings.get(*key).is_some_and(|value| !values.contains(value))) {
            Some((key, _)) => Err(self.refuse(key)),
            None => Ok(()),
        }
    }

    /// The error about a setting that a sampler lacks.
    pub(super) fn refuse(&self, key: &str) -> Error {
        let value = self.settings.get(key).unwrap_or(&Value::Null);
        Error::file(&self.file, format!("`{key}` is {value}, which is not supported")).hint(
            "choose a sampler by name: ddpm, ddim, pndm, euler, euler_ancestral, dpm_solver, \
                   dpm_solver_karras, uni_pc, heun or lcm",
        )
    }

    /// The timesteps of a run, descending; those of `linspace` may be fractions. `spare` more are spread, and the lowest dropped again,
    /// except with trailing spacing.
    ///
    /// # Errors
    /// The schedule has fewer.
    pub(super) fn spread(&self, steps: usize, spare: usize, default: TimestepSpacing) -> Result<Vec<f64>> {
        let levels = self.betas.len();
        if steps == 0 || steps > levels - spare {
            let problem = format!("{steps} steps, but the model's schedule has {levels} timesteps");
            return Err(Error::setting("steps", problem).hint(format!("use 1 to {}", levels - spare)));
        }
        let spacing = self.get("timestep_spacing", default)?;
        let spare = if spacing == TimestepSpacing::Trailing { 0 } else { spare };
        let mut timesteps = spacing.timesteps(levels, steps + spare);
        timesteps.truncate(steps);
        if spacing == TimestepSpacing::Leading {
            let offset: u32 = self.get("steps_offset", 0)?;
            timesteps.iter_mut().for_each(|t| *t += f64::from(offset));
            if timesteps[0] > (levels - 1) as f64 {
                let problem = format!("{steps} steps and a `steps_offset` of {offset} lead past {levels} timesteps");
                return Err(Error::setting("steps", problem).hint("use fewer"));
            }
        }
        Ok(timesteps)
    }

    /// [`spread`](Self::spread), in whole numbers.
    pub(super) fn timesteps(&self, steps: usize, spare: usize, default: TimestepSpacing) -> Result<Vec<f64>> {
        Ok(self.spread(steps, spare, default)?.into_iter().map(f64::round_ties_even).collect())
    }

    /// The sampler by the name of its class in diffusers.
    fn class(&self) -> Result<Option<SchedulerName>> {
        let class: String = self.get("_class_name", String::new())?;
        if class.is_empty() || class.contains("FlowMatch") {
            let problem = format!("`_class_name` is {class:?}, which is not a sampler of Stable Diffusion");
            return Err(Error::file(&self.file, problem).hint("the noise schedule must be one of betas"));
        }
        Ok(Some(match class.as_str() {
            "DDPMScheduler" => SchedulerName::Ddpm,
            "DDIMScheduler" => SchedulerName::Ddim,
            "PNDMScheduler" => SchedulerName::Pndm,
            "EulerDiscreteScheduler" => SchedulerName::Euler,
            "EulerAncestralDiscreteScheduler" => SchedulerName::EulerAncestral,
            "DPMSolverMultistepScheduler" if self.get("use_karras_sigmas", false)? => SchedulerName::DpmSolverKarras,
            "DPMSolverMultistepScheduler" => SchedulerName::DpmSolver,
            "UniPCMultistepScheduler" => SchedulerName::UniPc,
            "HeunDiscreteScheduler" => SchedulerName::Heun,
            "LCMScheduler" => SchedulerName::Lcm,
            _ => return Ok(None),
        }))
    }

    fn zero_terminal(&self) -> Result<bool> {
        let zero_terminal = self.get("rescale_betas_zero_snr", false)?;
        if zero_terminal && self.get("prediction_type", PredictionType::Epsilon)? == PredictionType::Epsilon {
            let problem = "`rescale_betas_zero_snr` with predicted noise: pure noise says nothing about the image";
            return Err(Error::file(&self.file, problem).hint("it needs a model with `prediction_type` v_prediction"));
        }
        Ok(zero_terminal)
    }

    /// The noise that each timestep adds.
    fn betas(&self) -> Result<Vec<f32>> {
        let levels = self.get("num_train_timesteps", 1000)?;
        if !(2..=100_000).contains(&levels) {
            return Err(Error::file(&self.file, format!("`num_train_timesteps` is {levels}, not 2 to 100000")));
        }
        // The default of the class.
        let class: String = self.get("_class_name", String::new())?;
        let (start, end, schedule) = match class.as_str() {
            "HeunDiscreteScheduler" => (0.00085, 0.012, BetaSchedule::Linear),
            "LCMScheduler" => (0.00085, 0.012, BetaSchedule::ScaledLinear),
            _ => (0.0001, 0.02, BetaSchedule::Linear),
        };
        let (start, end) = (self.get("beta_start", start)?, self.get("beta_end", end)?);
        let schedule = self.get("beta_schedule", schedule)?;
        let betas: Vec<f32> = match self.get("trained_betas", None)? {
            Some(betas) => betas,
            None => schedule.betas(start, end, levels),
        };
        if betas.len() != levels || !betas.iter().all(|beta| (f32::MIN_POSITIVE..1.0).contains(beta)) {
            let problem = format!("the schedule must be {levels} betas between 0 and 1");
            return Err(Error::file(&self.file, problem).hint("see `beta_start`, `beta_end` and `trained_betas`"));
        }
        Ok(betas)
    }
}
