//! `[model]`: the model to fine-tune, and the check of the configuration against it, before anything is encoded.

use std::path::{Path, PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::{Mode, TrainConfig};
use crate::{
    data::DataConfig,
    device::Dtype,
    error::{Error, Result},
    families::{Family, ObjectiveKind},
    hub,
};

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A model in the layout of diffusers: a folder, relative to the working directory, or `org/name` on the Hugging
    /// Face hub. No default.
    pub path: String,
    /// Dtype of the frozen weights. Default `bf16`. Use `f32` on a CPU, which computes bf16 by converting. Trained parameters and
    /// optimizer state are always f32.
    #[serde(default)]
    pub dtype: Dtype,
    /// Initial weights of the denoiser. Default `pretrained`: those in its folder. `random` draws them from `run.seed`, and the
    /// folder needs only a `config.json`: to train a model of your own from scratch, with `training.mode = "full"`.
    #[serde(default)]
    pub init: ModelInit,
}

/// Initial weights of the denoiser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelInit {
    /// The weights in its folder.
    #[default]
    Pretrained,
    /// Weights drawn from the seed of the run.
    Random,
}

impl ModelConfig {
    /// The model's folder.
    ///
    /// # Errors
    /// It does not exist, or lacks a part.
    pub(in crate::training) fn folder(&self) -> Result<PathBuf> {
        match self.init {
            ModelInit::Pretrained => hub::resolve(&self.path),
            ModelInit::Random => hub::resolve_untrained(&self.path),
        }
    }
}

impl TrainConfig {
    /// Checks the configuration against the model of this family in the folder `model`.
    ///
    /// # Errors
    /// A setting is not supported by the family or the model; or the model's files are broken.
    pub(in crate::training) fn check_against_model(&self, family: &dyn Family, model: &Path) -> Result<()> {
        let (kind, wanted) = (self.objective.kind(), family.objective());
        if kind != wanted {
            let problem = format!("`{}` is not supported by {}", kind.word(), family.name());
            return Err(Error::setting("objective.kind", problem)
                .hint(format!("write `kind = \"{}\"` in `[objective]`", wanted.word())));
        }
        match kind {
            ObjectiveKind::FlowMatching => self.check_flow_matching(family, model),
            ObjectiveKind::InstructPix2Pix => self.check_instruct_pix2pix(family, model),
        }
    }

    fn check_flow_matching(&self, family: &dyn Family, model: &Path) -> Result<()> {
        let usual = DataConfig::default();
        let other = self.data.conditioning_dropout != usual.conditioning_dropout;
        self.refuse(&[("data.conditioning_dropout", other, "set `data.caption_dropout`")])?;
        if !self.validation.prompts.is_empty() {
            family.sizes(model)?.check(self.validation.width, self.validation.height)?;
        }
        family.check_schedule(model, (!self.validation.prompts.is_empty()).then_some(self.validation.steps))
    }

    fn check_instruct_pix2pix(&self, family: &dyn Family, model: &Path) -> Result<()> {
        let usual = DataConfig::default();
        self.refuse(&[
            (
                "validation.prompts",
                !self.validation.prompts.is_empty(),
                "an editing model shows held-out pairs: set `validation.edits`",
            ),
            (
                "data.caption_dropout",
                self.data.caption_dropout != usual.caption_dropout,
                "set `data.conditioning_dropout`",
            ),
        ])?;
        if self.validation.edits > 0 && self.validation.seeds.is_empty() {
            return Err(Error::setting("validation.seeds", "must hold at least one seed for the edits"));
        }
        if self.training.mode == Mode::Lora && !family.edits() {
            let problem = "an adapter cannot teach a model to look at an image that its first layer does not read";
            return Err(Error::setting("training.mode", problem)
                .hint("use `full` to make an editing model of this one, or point `model.path` at an editing model"));
        }
        let Some(scheduler) = family.scheduler(model)? else { return Ok(()) };
        let timesteps = scheduler.noise_schedule().alphas_cumprod.len();
        let below = |key: &str, value: usize| match value < timesteps {
            true => Ok(()),
            false => Err(Error::setting(key, format!("{value} is not below the {timesteps} timesteps of the model"))),
        };
        self.validation.timesteps.iter().try_for_each(|&t| below("validation.timesteps", t as usize))?;
        below("validation.steps", self.validation.steps)?;
        let named = self.validation.scheduler.map_or(scheduler.clone(), |name| scheduler.with_name(name));
        named.scheduler(self.validation.steps).map(drop)
    }

    /// An error for the first of `settings` that is set but not used by the objective, with a hint.
    fn refuse(&self, settings: &[(&str, bool, &str)]) -> Result<()> {
        match settings.iter().find(|(_, set, _)| *set) {
            Some((key, _, hint)) => {
                Err(Error::setting(*key, format!("is not used by `{}`", self.objective.kind().word())).hint(*hint))
            }
            None => Ok(()),
        }
    }
}
