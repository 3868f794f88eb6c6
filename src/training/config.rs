//! The configuration of a training run: what a `configs/*.toml` says. One struct a table, one field a key; the defaults
//! are right for FLUX.1-dev.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::objective_config::{ObjectiveConfig, Sampling, Shift, Weighting};
use crate::{
    config,
    data::DataConfig,
    error::{Error, Result},
    lora::LoraConfig,
};

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
    /// What is learned from a batch.
    #[serde(default)]
    pub objective: ObjectiveConfig,
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
    /// The adapter and the optimizer are f32 always.
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

impl From<Dtype> for burn::tensor::FloatDType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The only one is `adamw`, with torch's semantics: decay is decoupled, moments are bias-corrected, state is f32.
    pub name: OptimizerName,
    /// Step size after warm-up. Default 1e-4, the usual one for LoRA with gaussian start. Lower it (3e-5) when samples
    /// become noisy or over-saturated; raise it (3e-4) for small ranks or very short runs.
    pub learning_rate: f64,
    /// How slowly the running means of the gradient and of its square forget. Default `[0.9, 0.999]`. A second value of
    /// 0.99 reacts faster in runs of a few hundred steps.
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Default 1e-8, as torch. Rarely changed.
    pub epsilon: f64,
    /// Pull of every adapter value to zero, a step: learning_rate × weight_decay. Default 1e-4, as diffusers' trainers
    /// (torch and others use 1e-2). Even 1e-2 moves a value by one part in a million a step at the default learning
    /// rate, so it hardly matters in a LoRA run of a few thousand steps; to hold an adapter back, lower the rank.
    pub weight_decay: f64,
    /// Gradients longer than this, as one vector over the whole adapter, are scaled down to it. Default 1.0; 0 turns it
    /// off. It bounds the damage of a single odd batch.
    pub max_grad_norm: f64,
}

/// Which rule turns gradients into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Shape of the learning rate after warm-up. Default `constant`, which lets a run be lengthened; `cosine` ends
    /// smoother when `max_steps` is final.
    pub name: ScheduleName,
    /// Optimizer steps over which the rate rises from 0. Default 0: AdamW's bias correction and clipping are enough for
    /// a LoRA, which starts as no change at all. Use 50 to 100 with large learning rates.
    pub warmup_steps: u64,
    /// Waves of `cosine_with_restarts`. Default 1.
    pub cycles: u64,
    /// Exponent of `polynomial`. Default 1.0, a straight line.
    pub power: f64,
}

/// Shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Stays.
    #[default]
    Constant,
    /// Falls evenly to 0 at `max_steps`.
    Linear,
    /// Falls as half a cosine wave to 0.
    Cosine,
    /// Falls `cycles` times, and jumps back in between.
    CosineWithRestarts,
    /// Falls to 1e-7 as a power of what remains.
    Polynomial,
}

/// `[training]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// Optimizer steps of the whole run. Default 1000. A style or a subject of 10 to 30 pictures needs 500 to 2000;
    /// watch the held-out loss.
    pub max_steps: u64,
    /// Batches whose gradients are averaged into one step: the effective batch is `data.batch_size` times this, at the
    /// memory of one batch. Default 1. Raise it when the loss is too noisy and a larger batch does not fit.
    pub gradient_accumulation: u64,
    /// What is kept of the forward pass. Default `blockwise`: the input of each block only, computed again while going
    /// back, so that peak memory is one block. `full` keeps everything: faster where it fits.
    pub activations: Activations,
    /// Steps between two lines of `metrics.jsonl` and of the display. Default 10. Reading the loss waits for the
    /// device, so 1 costs a little speed on a GPU and nothing on a CPU.
    pub log_every: u64,
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
    /// Steps between two checkpoints (adapter, optimizer, position). Default 250. The last step is always saved.
    pub every: u64,
    /// How many of the newest checkpoints stay; 0 keeps all. Default 3. Older ones go only after a newer one is
    /// complete.
    pub keep_last: usize,
}

/// `[validation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between two validations; 0 turns them off. Default 250. Before the first and after the last step there is
    /// one anyway. It does not disturb training: its noise is its own.
    pub every: u64,
    /// Captions to generate pictures for, without and with the adapter. Default none. Include one without the subject,
    /// to see what else the adapter changes.
    pub prompts: Vec<String>,
    /// Start noise of the pictures; each prompt is generated once a seed. Default `[0]`.
    pub seeds: Vec<u64>,
    /// Denoising steps a picture. Default 20.
    pub steps: usize,
    /// Width in pixels, a multiple of 16. Default 512.
    pub width: usize,
    /// Height in pixels, a multiple of 16. Default 512.
    pub height: usize,
    /// Distilled guidance of the pictures. Default 3.5, what FLUX.1-dev is sampled with. It has nothing to do with
    /// `objective.guidance`, and does nothing in models without a guidance input.
    pub guidance: f64,
    /// Noise levels at which the held-out loss is measured. Default `[0.1, 0.3, 0.5, 0.7, 0.9]`.
    pub sigmas: Vec<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adamw,
            learning_rate: 1e-4,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 1e-4,
            max_grad_norm: 1.0,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { name: ScheduleName::Constant, warmup_steps: 0, cycles: 1, power: 1.0 }
    }
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { max_steps: 1000, gradient_accumulation: 1, activations: Activations::Blockwise, log_every: 10 }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 250, keep_last: 3 }
    }
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 250,
            prompts: vec![],
            seeds: vec![0],
            steps: 20,
            width: 512,
            height: 512,
            guidance: 3.5,
            sigmas: vec![0.1, 0.3, 0.5, 0.7, 0.9],
        }
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
        let config: Self = config::load(&path, overrides)?;
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

    /// What is impossible, one line each.
    fn problems(&self) -> Vec<String> {
        let (optimizer, schedule, training) = (&self.optimizer, &self.schedule, &self.training);
        let validation = &self.validation;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let name_is_one_word = !self.run.name.contains(['/', '\\']) && !matches!(self.run.name.trim(), "" | "." | "..");
        let rules = [
            (name_is_one_word, "run.name", "must be the name of a folder, without `/`"),
            (!self.model.path.is_empty(), "model.path", "must name a folder or a model of the hub"),
            (positive(optimizer.learning_rate), "optimizer.learning_rate", "must be above 0"),
            (
                optimizer.betas.iter().all(|beta| (0.0..1.0).contains(beta)),
                "optimizer.betas",
                "must both be at least 0 and below 1",
            ),
            (positive(optimizer.epsilon), "optimizer.epsilon", "must be above 0"),
            (not_negative(optimizer.weight_decay), "optimizer.weight_decay", "must be at least 0"),
            (not_negative(optimizer.max_grad_norm), "optimizer.max_grad_norm", "must be at least 0 (0 turns it off)"),
            (training.max_steps > 0, "training.max_steps", "must be at least 1"),
            (training.gradient_accumulation > 0, "training.gradient_accumulation", "must be at least 1"),
            (training.log_every > 0, "training.log_every", "must be at least 1"),
            (
                schedule.warmup_steps < training.max_steps.max(1),
                "schedule.warmup_steps",
                "must be below `training.max_steps`, or the full learning rate is never reached",
            ),
            (schedule.cycles > 0, "schedule.cycles", "must be at least 1"),
            (positive(schedule.power), "schedule.power", "must be above 0"),
            (self.checkpoint.every > 0, "checkpoint.every", "must be at least 1"),
            (
                validation.prompts.is_empty() || !validation.seeds.is_empty(),
                "validation.seeds",
                "must hold at least one seed for the prompts",
            ),
            (validation.steps > 0, "validation.steps", "must be at least 1"),
            (
                validation.width > 0 && validation.width.is_multiple_of(16),
                "validation.width",
                "must be a multiple of 16 pixels",
            ),
            (
                validation.height > 0 && validation.height.is_multiple_of(16),
                "validation.height",
                "must be a multiple of 16 pixels",
            ),
            (not_negative(validation.guidance), "validation.guidance", "must be at least 0"),
            (
                !validation.sigmas.is_empty() && validation.sigmas.iter().all(|&s| s > 0.0 && s <= 1.0),
                "validation.sigmas",
                "must hold noise levels above 0 and up to 1",
            ),
        ];
        let broken = rules.into_iter().chain(self.objective.rules()).filter(|(holds, _, _)| !holds);
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
