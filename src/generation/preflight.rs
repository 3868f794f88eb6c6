//! The checks of a request that need no weights, made before any are loaded.

use std::path::{Path, PathBuf};

use super::SamplingOptions;
use crate::{
    error::{Error, Result},
    families::{self, Family, Sampling},
    hub,
    lora::Lora,
    nn::LayerShape,
    pipelines::{ImageSizes, pipeline::check_first, request::check_strength, stable_diffusion},
    schedulers::SchedulerConfig,
    weights::{TensorFile, shards},
};

/// A model that suits what is asked of it, as far as its configuration tells, with the adapters for it.
pub(super) struct Preflight {
    pub folder: PathBuf,
    pub family: &'static dyn Family,
    pub options: SamplingOptions,
    pub sizes: ImageSizes,
    /// In the order of the options.
    pub loras: Vec<Lora>,
    /// Where the family lets it be chosen, the sampler that was asked for, else the model's own.
    scheduler: Option<SchedulerConfig>,
}

impl Preflight {
    /// `edits` says whether it must be a model that edits, or must not.
    ///
    /// # Errors
    /// The model is of another kind or cannot be used with these options, or an adapter cannot be read or is for another model.
    pub fn new(model: &str, options: &SamplingOptions, edits: Option<bool>) -> Result<Self> {
        let folder = hub::resolve(model)?;
        let family = families::of(&folder)?;
        if edits.is_some_and(|edits| edits != family.edits()) {
            return Err(family.other_purpose(&folder));
        }
        let scheduler = family.scheduler(&folder)?.map(|config| match options.scheduler {
            Some(name) => config.with_name(name),
            None => config,
        });
        options.check(family, scheduler.is_some())?;
        family.check_schedule(&folder, Some(options.steps(family)))?;
        let read = |(path, _): &(PathBuf, f64)| {
            let lora = Lora::read(path)?;
            lora.check_base(&folder).map_err(|e| e.at(path))?;
            Ok(lora)
        };
        let loras: Vec<_> = options.loras.iter().map(read).collect::<Result<_>>()?;
        if !loras.is_empty() {
            let layers = layers(&folder.join(family.denoiser()))?;
            for (lora, (path, _)) in loras.iter().zip(&options.loras) {
                lora.check(&layers).map_err(|e| e.at(path))?;
            }
        }
        let sizes = family.sizes(&folder)?;
        Ok(Self { folder, family, options: options.clone(), sizes, loras, scheduler })
    }

    /// How many denoising steps a run has.
    pub fn steps(&self) -> usize {
        self.options.steps(self.family)
    }

    /// What the pipeline is opened with.
    pub fn sampling(&self) -> Sampling {
        Sampling { scheduler: self.scheduler.clone(), scaled_condition: self.options.scaled_condition }
    }

    /// # Errors
    /// An instruction to edit by is empty, or the steps or the share of them to run, unless the model edits, leave nothing to
    /// do.
    pub fn check(&self, prompts: &[String], strength: f64) -> Result<()> {
        if self.family.edits() && prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return Err(Error::setting("prompts", "is empty").hint("say what to change in the picture"));
        }
        let strength = if self.family.edits() { 1.0 } else { strength };
        check_strength(strength)?;
        let Some(scheduler) = &self.scheduler else { return Ok(()) };
        let (sampler, first) = stable_diffusion::sampler(scheduler, self.steps(), strength)?;
        check_first(first, sampler.timesteps(), self.steps())
    }
}

/// All matrices in the weights of a denoiser, from headers alone: its linear layers are among them.
fn layers(folder: &Path) -> Result<Vec<LayerShape>> {
    let mut layers = Vec::new();
    for path in shards(folder)? {
        let file = TensorFile::open(path)?;
        for name in file.names() {
            if let (Some(layer), Some(&[outputs, inputs] | &[outputs, inputs, 1, 1])) =
                (name.strip_suffix(".weight"), file.shape(&name))
            {
                let pointwise = file.shape(&name).is_some_and(|shape| shape.len() == 4);
                layers.push(LayerShape { name: layer.into(), inputs, outputs, pointwise });
            }
        }
    }
    Ok(layers)
}
