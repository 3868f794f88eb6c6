//! The configuration of a training run, such as `configs/*.toml`: one struct per table, one field per key. The defaults suit
//! FLUX.1-dev.

mod checkpoint;
mod flow_matching;
mod instruct_pix2pix;
mod model;
mod objective;
mod optimizer;
mod run;
mod training;
mod validation;
mod reference;

use std::path::{Path, PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

pub use self::{
    checkpoint::CheckpointConfig,
    flow_matching::{FlowMatchingConfig, Sampling, Shift, Weighting},
    instruct_pix2pix::InstructPix2PixConfig,
    model::{ModelConfig, ModelInit},
    objective::ObjectiveConfig,
    optimizer::{OptimizerConfig, OptimizerName, ScheduleConfig, ScheduleName},
    reference::{commented, reference},
    run::RunConfig,
    training::{Activations, LoopConfig, Mode},
    validation::ValidationConfig,
};
use crate::{
    config::{Document, Sources, Table},
    data::DataConfig,
    device::Dtype,
    error::{Error, Result, Subject},
    families::ObjectiveKind,
    lora::LoraConfig,
    memory::MemoryConfig,
    paths,
};

/// A rule: whether it holds, its key, and its text.
type Rule = (bool, &'static str, &'static str);

/// The whole configuration. `[run]`, `[model]` and `[data]` have keys without a default; every other table may be left out.
///
/// It is parsed with the objective `O` of one kind, so that errors name the position of each key; afterwards the kind is part of the
/// value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig<O = ObjectiveConfig> {
    /// The run: its name, its seed and its folder.
    pub run: RunConfig,
    /// The model to fine-tune.
    pub model: ModelConfig,
    /// The dataset, and how it becomes batches.
    pub data: DataConfig,
    /// The LoRA: which layers get an adapter, how large it is and how it starts. Used where `training.mode` is `lora`.
    #[serde(default)]
    pub lora: LoraConfig,
    /// The objective of the training.
    #[serde(default, bound(deserialize = "O: Default + Deserialize<'de>"))]
    pub objective: O,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// The training loop: mode, length, and memory.
    #[serde(default)]
    pub training: LoopConfig,
    /// When checkpoints are written, and how many are kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Validation during training: held-out loss and sample images.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// The memory level: how much of the model is in device memory at once. The results are the same at every level.
    #[serde(default)]
    pub memory: MemoryConfig,
}

impl TrainConfig {
    /// Reads and checks a configuration file, with overrides as in [`config::load`](crate::config::load).
    ///
    /// # Errors
    /// As [`config::load`](crate::config::load); or values are invalid, alone or together: all in one error.
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        Self::of(&Sources::read(&path, overrides)?, path.as_ref())
    }

    /// The same of sources that were read from the file `path`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn of(sources: &Sources, path: &Path) -> Result<Self> {
        let mut document = sources.document()?;
        match document.take_table("edit") {
            Some(edit) => Err(edit_is_an_objective(&document, &edit)),
            None => {
                let kind = document.take("objective", "kind")?.unwrap_or_default();
                Self::from_document(document, kind, path)
            }
        }
    }

    /// The configuration in a document from the file `path`, with an objective of this kind, which is not among its keys.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(in crate::training) fn from_document(document: Document<'_>, kind: ObjectiveKind, path: &Path) -> Result<Self> {
        let mut config = match kind {
            ObjectiveKind::FlowMatching => {
                document.into::<TrainConfig<_>>()?.with_objective(ObjectiveConfig::FlowMatching)
            }
            ObjectiveKind::InstructPix2Pix => {
                document.into::<TrainConfig<_>>()?.with_objective(ObjectiveConfig::InstructPix2Pix)
            }
        };
        for (key, path) in [("run.output", &mut config.run.output), ("data.path", &mut config.data.path)] {
            *path = paths::meant_by(key, path)?;
        }
        if let Some(cache) = &mut config.data.cache {
            *cache = paths::meant_by("data.cache", cache)?;
        }
        match config.problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(Error::many(path, problems)),
        }
    }

    /// Every value, defaults included, as TOML that [`load`](Self::load) reads back: the resolved configuration in the
    /// run folder.
    ///
    /// # Errors
    /// A number is too large for TOML (a seed above 2⁶³ − 1, which no file can contain either).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::setting("configuration", e.to_string()))
    }

    /// The folder of the run, `<output>/<name>`.
    pub fn run_folder(&self) -> PathBuf {
        self.run.output.join(&self.run.name)
    }

    /// The violated rules of all tables, one line each.
    fn problems(&self) -> Vec<String> {
        let training = &self.training;
        let named = (!self.model.path.is_empty(), "model.path", "must name a folder or a model of the hub");
        let saved = (self.checkpoint.every > 0, "checkpoint.every", "must be at least 1");
        // Rules about several tables.
        let together = vec![
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
            (
                training.mode == Mode::Full || self.model.init == ModelInit::Pretrained,
                "model.init",
                "must be \"pretrained\" where `training.mode` is `lora`: an adapter of random weights has nothing to adapt",
            ),
        ];
        let rules = [
            self.run.rules(),
            vec![named],
            training.rules(),
            together,
            vec![saved],
            self.objective.rules(),
            self.optimizer.rules(),
            self.schedule.rules(),
            self.validation.rules(),
        ];
        let broken = rules.into_iter().flatten().filter(|(holds, _, _)| !holds);
        let mut problems: Vec<_> = broken.map(|(_, key, rule)| format!("`{key}`: {rule}")).collect();
        let parts = [self.data.validate(), self.lora.validate()];
        problems.extend(parts.into_iter().filter_map(Result::err).map(|e| match &e.hint {
            Some(hint) => format!("{} ({hint})", e.message()),
            None => e.message(),
        }));
        problems
    }
}

impl<O> TrainConfig<O> {
    /// The same configuration with the objective as [`ObjectiveConfig`].
    #[rustfmt::skip] // one field a line would hide that nothing else happens
    fn with_objective(self, objective: impl FnOnce(O) -> ObjectiveConfig) -> TrainConfig {
        let Self {
            run, model, data, lora, objective: own, optimizer, schedule, training, checkpoint, validation, memory,
        } = self;
        let objective = objective(own);
        TrainConfig {
            run, model, data, lora, objective, optimizer, schedule, training, checkpoint, validation, memory,
        }
    }
}

/// The error for a configuration from before `[edit]` became an objective, with what to write instead.
fn edit_is_an_objective(document: &Document<'_>, edit: &Table<'_>) -> Error {
    let kind = ("kind".to_string(), format!("\"{}\"", ObjectiveKind::InstructPix2Pix.word()));
    let entries = std::iter::once(kind).chain(edit.entries());
    let error = document.error(edit, "is now `[objective]` of the kind `instruct_pix2pix`");
    match &error.subject {
        Subject::Setting(_) => {
            let settings: Vec<_> = entries.map(|(key, value)| format!("`set objective.{key}={value}`")).collect();
            error.hint(format!("write {}", settings.join(" ")))
        }
        _ => {
            let lines: String = entries.map(|(key, value)| format!("\n  {key} = {value}")).collect();
            error.hint(format!("write instead of `[edit]`, and of an `[objective]` beside it:\n  [objective]{lines}"))
        }
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
        let ObjectiveConfig::FlowMatching(objective) = &config.objective else { panic!("{config:?}") };
        assert_eq!(objective.guidance, 1.0);
        assert_eq!((objective.sampling, objective.shift), (Sampling::LogitNormal, Shift::Resolution));
        assert_eq!((config.optimizer.learning_rate, config.optimizer.epsilon), (1e-4, 1e-8));
        assert_eq!(config.training.activations, Activations::Blockwise);
        assert_eq!(config.run_folder(), Path::new("checkpoints/a"));
    }

    #[test]
    fn the_resolved_configuration_reads_back_as_itself() {
        for overrides in [
            &[][..],
            &["objective.shift=3.0", "validation.prompts=['a \"red\" cat']", "run.seed=7"],
            &["objective.kind=instruct_pix2pix", "objective.snr_gamma=5"],
        ] {
            let config = load(SMALLEST, overrides).unwrap();
            assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
        }
    }

    #[test]
    fn the_kind_of_an_objective_decides_its_keys() {
        let text = format!("{SMALLEST}[objective]\nkind = 'instruct_pix2pix'\nnoise_offset = 0.05\n");
        let ObjectiveConfig::InstructPix2Pix(objective) = load(&text, &[]).unwrap().objective else { panic!() };
        assert_eq!((objective.noise_offset, objective.snr_gamma), (0.05, 0.0));
        let error = load(&text, &["objective.shift=3.0"]).unwrap_err();
        assert!(error.starts_with("`set objective.shift=3.0`: `objective.shift`: unknown key `shift`"), "{error}");
        let error = load(&text.replace("instruct_pix2pix", "instruct_pixpix"), &[]).unwrap_err();
        assert!(error.contains("line 8: `objective.kind`: unknown value `instruct_pixpix`"), "{error}");
        assert!(error.ends_with("did you mean `instruct_pix2pix`?"), "{error}");
    }

    #[test]
    fn the_old_table_of_edits_is_refused_with_what_to_write() {
        let text = format!("{SMALLEST}[edit]\nsnr_gamma = 5\nscaled_condition = true\n");
        let error = load(&text, &[]).unwrap_err();
        assert!(error.contains("line 7: `edit`: is now `[objective]`"), "{error}");
        let written = "\n  [objective]\n  kind = \"instruct_pix2pix\"\n  scaled_condition = true\n  snr_gamma = 5";
        assert!(error.ends_with(written), "{error}");
        let written = error.split_once("beside it:").unwrap().1;
        let config = load(&format!("{SMALLEST}{written}"), &[]).unwrap();
        assert_eq!(
            config,
            load(
                SMALLEST,
                &["objective.kind=instruct_pix2pix", "objective.snr_gamma=5", "objective.scaled_condition=true"]
            )
            .unwrap()
        );
        let error = load(SMALLEST, &["edit.snr_gamma=5"]).unwrap_err();
        assert!(error.starts_with("`set edit.snr_gamma=5`: `edit`: is now"), "{error}");
        assert!(error.contains("`set objective.kind=\"instruct_pix2pix\"` `set objective.snr_gamma=5`"), "{error}");
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
