//! Whether a configuration is one for the model that it names: found out before anything is encoded.

use std::path::Path;

use super::{EditConfig, Mode, ObjectiveConfig, TrainConfig};
use crate::{
    data::DataConfig,
    error::{Error, Result},
    models::unet::UNetConfig,
    pipelines::ModelKind,
    schedulers::{FlowMatchEuler, SchedulerConfig},
};

impl TrainConfig {
    /// Checks the configuration against the model in the folder `model`.
    ///
    /// # Errors
    /// A setting means nothing to this kind of model, or asks for what it cannot do; or the model's files are broken.
    pub(in crate::training) fn suits(&self, kind: ModelKind, model: &Path) -> Result<()> {
        match kind {
            ModelKind::Flux => self.suits_flux(model),
            ModelKind::StableDiffusion | ModelKind::InstructPix2Pix => self.suits_editing(model),
        }
    }

    fn suits_flux(&self, model: &Path) -> Result<()> {
        let usual = DataConfig::default();
        if self.training.mode == Mode::Full {
            return Err(Error::setting("training.mode", "`full` is not for FLUX.1").hint("use `lora`"));
        }
        let meaningless = [
            ("edit", self.edit != EditConfig::default(), "its settings are those of `[objective]`"),
            (
                "data.conditioning_dropout",
                self.data.conditioning_dropout != usual.conditioning_dropout,
                "set `data.caption_dropout`",
            ),
        ];
        refuse(&meaningless, "is for Stable Diffusion, but the model is FLUX.1")?;
        let scheduler = FlowMatchEuler::open(model.join("scheduler"))?;
        if self.validation.prompts.is_empty() { Ok(()) } else { scheduler.check_steps(self.validation.steps) }
    }

    fn suits_editing(&self, model: &Path) -> Result<()> {
        let usual = DataConfig::default();
        let meaningless = [
            ("objective", self.objective != ObjectiveConfig::default(), "its settings are those of `[edit]`"),
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
        ];
        refuse(&meaningless, "is for FLUX.1, but the model is Stable Diffusion")?;
        if self.validation.edits > 0 && self.validation.seeds.is_empty() {
            return Err(Error::setting("validation.seeds", "must hold at least one seed for the edits"));
        }
        let unet = UNetConfig::open(model.join("unet"))?;
        if self.training.mode == Mode::Lora && unet.in_channels == unet.out_channels {
            let problem = "an adapter cannot teach a model to look at a picture that its first layer does not read";
            return Err(Error::setting("training.mode", problem)
                .hint("use `full` to make an editing model of this one, or point `model.path` at an editing model"));
        }
        let scheduler = SchedulerConfig::open(model.join("scheduler"))?;
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
}

/// The first of `settings` that is not as usual, with what to do about it.
fn refuse(settings: &[(&str, bool, &str)], problem: &str) -> Result<()> {
    match settings.iter().find(|(_, changed, _)| *changed) {
        Some((key, _, hint)) => Err(Error::setting(*key, problem).hint(*hint)),
        None => Ok(()),
    }
}
