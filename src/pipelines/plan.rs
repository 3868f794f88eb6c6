//! What can be said about a request before anything is loaded.

use std::path::{Path, PathBuf};

use super::{ModelKind, Setup, pipeline::check_first, request::check_strength, stable_diffusion};
use crate::{
    error::{Error, Result},
    hub,
    models::unet::UNetConfig,
    schedulers::{FlowMatchEuler, SchedulerConfig},
};

/// A model that suits what is asked of it, as far as its configuration tells.
pub(super) struct Plan {
    pub folder: PathBuf,
    pub kind: ModelKind,
    pub setup: Setup,
    /// Whether it edits pictures.
    pub edits: bool,
    /// Of Stable Diffusion, with the sampler that is asked for.
    pub scheduler: Option<SchedulerConfig>,
}

impl Plan {
    /// `edits` says whether it must be a model that edits, or must not.
    ///
    /// # Errors
    /// The model is of another kind, or cannot be used with this setup.
    pub fn new(model: &str, setup: &Setup, edits: Option<bool>) -> Result<Self> {
        let folder = hub::resolve(model)?;
        let kind = ModelKind::of(&folder)?;
        let edits = check_purpose(&folder, kind, edits)?;
        setup.check(kind, edits)?;
        let scheduler = match kind {
            ModelKind::Flux => {
                FlowMatchEuler::open(folder.join("scheduler"))?.check_steps(setup.steps(kind))?;
                None
            }
            ModelKind::StableDiffusion | ModelKind::InstructPix2Pix => {
                let config = SchedulerConfig::open(folder.join("scheduler"))?;
                Some(setup.scheduler.map_or(config.clone(), |name| config.with_name(name)))
            }
        };
        Ok(Self { folder, kind, setup: setup.clone(), edits, scheduler })
    }

    /// How many denoising steps a run has.
    pub fn steps(&self) -> usize {
        self.setup.steps(self.kind)
    }

    /// # Errors
    /// An instruction to edit by is empty, or the steps or the share of them to run, unless the model edits, leave nothing to
    /// do. The `option` that prompts are given by is named.
    pub fn check(&self, option: &str, prompts: &[String], strength: f64) -> Result<()> {
        if self.edits && prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return Err(Error::setting(option, "is empty").hint("say what to change in the picture"));
        }
        let strength = if self.edits { 1.0 } else { strength };
        check_strength(strength)?;
        let Some(scheduler) = &self.scheduler else { return Ok(()) };
        let (sampler, first) = stable_diffusion::sampler(scheduler, self.steps(), strength)?;
        check_first(first, sampler.timesteps(), self.steps())
    }
}

/// Whether the model edits pictures, which its UNet's input channels tell. `edits` says what it must do, if only one will do.
fn check_purpose(folder: &Path, kind: ModelKind, edits: Option<bool>) -> Result<bool> {
    let path = folder.join("unet");
    let config = (kind != ModelKind::Flux).then(|| UNetConfig::open(&path)).transpose()?;
    let (path, own) = (path.join("config.json"), config.as_ref().is_some_and(UNetConfig::edits));
    match (edits, config) {
        (Some(true), None) => Err(Error::setting("--model", "FLUX.1 does not edit by instruction")
            .hint("use an InstructPix2Pix model, or `kiln generate --image` to change a picture")),
        (Some(true), Some(UNetConfig { in_channels, out_channels, .. })) if !own => {
            let problem =
                format!("`in_channels` is {in_channels}: to read a picture to edit it must be {}", 2 * out_channels);
            Err(Error::file(path, problem)
                .hint("use an InstructPix2Pix model, or `kiln generate --image` to change a picture"))
        }
        (Some(false), Some(UNetConfig { in_channels, .. })) if own => {
            let problem = format!("`in_channels` is {in_channels}: this UNet edits pictures by instruction");
            Err(Error::file(path, problem).hint("use `kiln edit`"))
        }
        _ => Ok(own),
    }
}
