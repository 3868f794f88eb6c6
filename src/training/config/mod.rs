//! The configuration of a training run: what a `configs/*.toml` says. One struct a table, one field a key; the defaults
//! are right for FLUX.1-dev.

mod edit;
mod objective;
mod optimizer;
mod suits;
mod validation;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    edit::EditConfig,
    objective::{ObjectiveConfig, Sampling, Shift, Weighting},
    optimizer::{OptimizerConfig, OptimizerName, ScheduleConfig, ScheduleName},
    validation::ValidationConfig,
};
use crate::{
    config,
    data::DataConfig,
    error::{Error, Result},
    lora::LoraConfig,
    paths,
};

/// Whether something that must hold does, the key it is about, and the rule.
type Rule = (bool, &'static str, &'static str);

/// All of a run. `[run]`, `[model]` and `[data]` have keys without a default; every other table may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Its name, its seed and where it goes.
    pub run: RunConfig,
    /// What is fine-tuned.
    pub model: ModelConfig,
    /// The pictures and captions.
    pub data: DataConfig,
    /// The adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// What FLUX.1 learns from a picture.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// What Stable Diffusion learns from a pair of pictures.
    #[serde(default)]
    pub edit: EditConfig,
    /// How a gradient becomes a step.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// How long, and in which pieces.
    #[serde(default)]
    pub training: LoopConfig,
    /// What is kept on disk.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// How progress is judged.
    #[serde(default)]
    pub validation: ValidationConfig,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run and of its folder below `output`; also the name inside the exported LoRA. No default.
    pub name: String,
    /// Root of all randomness (noise, noise levels, order, dropout, adapter start): equal seeds give equal runs.
    /// Default 0. Change it to see how much of a result is luck.
    #[serde(default)]
    pub seed: u64,
    /// Folder that holds the run folders. Default `checkpoints`.
    #[serde(default = "checkpoints")]
    pub output: PathBuf,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A model in the layout of diffusers: a folder, relative to the working directory, or `org/name` on the Hugging
    /// Face hub. No default.
    pub path: String,
    /// Number format of the frozen weights. Default `bf16`. Use `f32` on a CPU: it computes bf16 by converting.
    /// What is trained and the optimizer are f32 always.
    #[serde(default)]
    pub dtype: Dtype,
}

/// Number format of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    #[default]
    Bf16,
}

impl Dtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl From<Dtype> for burn::tensor::FloatDType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// `[training]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// What is trained. Default `lora`: adapters on the layers that `[lora]` names. `full` trains every number of a UNet, with
    /// a tenth of the learning rate or less; it needs `model.dtype = "f32"` and four times the memory of the weights (a running
    /// mean and gradient accumulation add one each).
    pub mode: Mode,
    /// Optimizer steps of the whole run. Default 1000. A style or a subject of 10 to 30 pictures needs 500 to 2000;
    /// watch the held-out loss.
    pub max_steps: u64,
    /// Batches whose gradients are averaged into one step: the effective batch is `data.batch_size` times this, at the
    /// memory of one batch. Default 1. Raise it when the loss is too noisy and a larger batch does not fit.
    pub gradient_accumulation: u64,
    /// Decay of a running mean over what is trained, such as 0.9999; default 0, none. With one, validation and export show the
    /// mean, which is smoother; it ramps up from the start, and costs the memory of the trained numbers once more.
    pub ema_decay: f64,
    /// What is kept of the forward pass. Default `blockwise`: the input of each block only, computed again while going
    /// back, so that peak memory is one block. `full` keeps everything: faster where it fits.
    pub activations: Activations,
    /// Steps between two lines of `metrics.jsonl` and of the display. Default 10. Reading the loss waits for the
    /// device, so 1 costs a little speed on a GPU and nothing on a CPU.
    pub log_every: u64,
}

/// What a run trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Low-rank adapters on a frozen model.
    #[default]
    Lora,
    /// All weights of the denoiser.
    Full,
}

/// What the backward pass finds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// The input of each block.
    #[default]
    Blockwise,
    /// Every intermediate result.
    Full,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints (what is trained, optimizer, position). Default 250. The last step is always saved.
    pub every: u64,
    /// How many of the newest checkpoints stay; 0 keeps all. Default 3. Older ones go only after a newer one is
    /// complete.
    pub keep_last: usize,
}

/// The longest name of a run, in bytes: files that are called after it have endings of their own.
const LONGEST_NAME: usize = 200;

/// The most optimizer steps of a run: a step a millisecond for twelve days.
const MOST_STEPS: u64 = 1_000_000_000;

/// The most batches of a step.
const MOST_BATCHES: u64 = 1_000_000;

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Lora,
            max_steps: 1000,
            gradient_accumulation: 1,
            ema_decay: 0.0,
            activations: Activations::Blockwise,
            log_every: 10,
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 250, keep_last: 3 }
    }
}

fn checkpoints() -> PathBuf {
    "checkpoints".into()
}

impl TrainConfig {
    /// Reads and checks a configuration file, with overrides as in [`config::load`].
    ///
    /// # Errors
    /// What [`config::load`] refuses; values that are impossible by themselves or beside others, all in one error.
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let mut config: Self = config::load(&path, overrides)?;
        for (key, path) in [("run.output", &mut config.run.output), ("data.path", &mut config.data.path)] {
            *path = paths::meant_by(key, path)?;
        }
        if let Some(cache) = &mut config.data.cache {
            *cache = paths::meant_by("data.cache", cache)?;
        }
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::Many { path: path.as_ref().into(), problems });
        }
        Ok(config)
    }

    /// Every value, defaults included, as TOML that [`load`](Self::load) reads back: the resolved configuration in the
    /// run folder.
    ///
    /// # Errors
    /// A number is too large for TOML (a seed above 2⁶³ − 1, which no file can hold either).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::setting("configuration", e.to_string()))
    }

    /// The folder of the run, `<output>/<name>`.
    pub fn run_folder(&self) -> PathBuf {
        self.run.output.join(&self.run.name)
    }

    /// What is impossible, one line each, over all tables.
    fn problems(&self) -> Vec<String> {
        let training = &self.training;
        let name_is_one_word = !self.run.name.contains(['/', '\\']) && !matches!(self.run.name.trim(), "" | "." | "..");
        let name_fits = self.run.name.len() <= LONGEST_NAME && !self.run.name.chars().any(char::is_control);
        let rules = [
            (name_is_one_word, "run.name", "must be the name of a folder, without `/`"),
            (name_fits, "run.name", "must be of at most 200 bytes, none of them a control character"),
            (!self.model.path.is_empty(), "model.path", "must name a folder or a model of the hub"),
            ((1..=MOST_STEPS).contains(&training.max_steps), "training.max_steps", "must be from 1 to 1000000000"),
            (
                (1..=MOST_BATCHES).contains(&training.gradient_accumulation),
                "training.gradient_accumulation",
                "must be from 1 to 1000000",
            ),
            ((0.0..1.0).contains(&training.ema_decay), "training.ema_decay", "must be at least 0 and below 1"),
            (training.log_every > 0, "training.log_every", "must be at least 1"),
            (
                self.schedule.warmup_steps < training.max_steps.max(1),
                "schedule.warmup_steps",
                "must be below `training.max_steps`, or the full learning rate is never reached",
            ),
            (
                training.mode == Mode::Lora || self.model.dtype == Dtype::F32,
                "model.dtype",
                "must be \"f32\" where `training.mode` is `full`: the steps are smaller than the rounding of bf16",
            ),
            (self.checkpoint.every > 0, "checkpoint.every", "must be at least 1"),
        ];
        let parts = [
            self.objective.rules(),
            self.edit.rules(),
            self.optimizer.rules(),
            self.schedule.rules(),
            self.validation.rules(),
        ];
        let broken = rules.into_iter().chain(parts.into_iter().flatten()).filter(|(holds, _, _)| !holds);
        let mut problems: Vec<_> = broken.map(|(_, key, rule)| format!("`{key}`: {rule}")).collect();
        let parts = [self.data.validate(), self.lora.validate()];
        problems.extend(parts.into_iter().filter_map(Result::err).map(|e| e.to_string()));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "[run]\nname = 'a'\n[model]\npath = 'm'\n[data]\npath = 'd'\n";

    fn load(text: &str, overrides: &[&str]) -> std::result::Result<TrainConfig, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let overrides: Vec<_> = overrides.iter().map(|o| o.to_string()).collect();
        TrainConfig::load(file.path(), &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn three_keys_are_enough_and_the_rest_is_right_for_flux_dev() {
        let config = load(SMALLEST, &[]).unwrap();
        assert_eq!(config.objective.guidance, 1.0);
        assert_eq!((config.objective.sampling, config.objective.shift), (Sampling::LogitNormal, Shift::Resolution));
        assert_eq!((config.optimizer.learning_rate, config.optimizer.epsilon), (1e-4, 1e-8));
        assert_eq!(config.training.activations, Activations::Blockwise);
        assert_eq!(config.run_folder(), Path::new("checkpoints/a"));
    }

    #[test]
    fn the_resolved_configuration_reads_back_as_itself() {
        for overrides in [&[][..], &["objective.shift=3.0", "validation.prompts=['a \"red\" cat']", "run.seed=7"]] {
            let config = load(SMALLEST, overrides).unwrap();
            assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
        }
    }

    #[test]
    fn all_impossible_values_are_one_error() {
        let overrides = ["run.name=a/b", "training.max_steps=10", "schedule.warmup_steps=10", "validation.width=500"];
        let error = load(SMALLEST, &overrides).unwrap_err();
        assert!(error.contains("3 problems"), "{error}");
        for key in ["`run.name`: ", "`schedule.warmup_steps`: ", "`validation.width`: "] {
            assert!(error.contains(key), "{error}");
        }
    }
}
