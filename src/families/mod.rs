//! Kinds of base models: their folders, image sizes, sampling defaults, trainable objectives, and how the pipeline is opened. No other
//! code depends on the kind of a model; it asks the [`Family`].
//!
//! A new base model is a file here, listed in [`ALL`], beside its network in [`models`](crate::models) and, where none of the
//! [`pipelines`](crate::pipelines) fits, its pipeline.

mod objective;
mod components;
mod parts;
mod encoders;
mod flux;
mod stable_diffusion;

use std::{fmt::Debug, path::Path};

use burn::tensor::{Device, FloatDType};
pub use components::Component;
pub use encoders::ModelEncoders;
pub use flux::Flux;
pub use objective::ObjectiveKind;
use serde::Deserialize;
pub use stable_diffusion::{INSTRUCT_PIX2PIX, STABLE_DIFFUSION, StableDiffusion};

use crate::{
    error::{Error, Result},
    lora::Denoiser,
    pipelines::{ImageSizes, Pipeline, Placement},
    rng::Seed,
    schedulers::SchedulerConfig,
    weights::{TrainedPart, read_json},
};

/// Every family. A model folder belongs to the first that [claims](Family::claims) it.
pub const ALL: [&dyn Family; 3] = [&Flux, &STABLE_DIFFUSION, &INSTRUCT_PIX2PIX];

/// A kind of base model, in the layout of diffusers.
pub trait Family: Debug + Sync {
    /// Its name in messages, such as `FLUX.1`.
    fn name(&self) -> &'static str;

    /// The pipeline classes of diffusers (`_class_name` in `model_index.json`) that save such a folder, the usual one first.
    fn classes(&self) -> &'static [&'static str];

    /// Whether a folder that this `class` saved is of this family.
    ///
    /// # Errors
    /// The class alone is ambiguous, and the configuration that decides is missing or broken.
    fn claims(&self, _model: &Path, class: &str) -> Result<bool> {
        Ok(self.classes().contains(&class))
    }

    /// The folders of a model that kiln reads. Others (safety checker, image encoder) are ignored.
    fn components(&self) -> &'static [Component];

    /// Its denoiser.
    fn denoiser(&self) -> Denoiser;

    /// The folders that determine the denoiser's behaviour: its own and that of its noise schedule.
    fn parts(&self) -> [&'static str; 2] {
        [self.denoiser().folder(), "scheduler"]
    }

    /// Checks that the denoiser fits the text encoders.
    ///
    /// # Errors
    /// Their widths differ, or a configuration is missing or broken.
    fn check_parts(&self, model: &Path) -> Result<()>;

    /// T5 tokens per prompt; 0 for families without T5.
    ///
    /// # Errors
    /// A configuration is missing or broken.
    fn t5_tokens(&self, _model: &Path) -> Result<usize> {
        Ok(0)
    }

    /// Tokens per prompt for the denoiser: of T5 if the family has it, else of CLIP.
    ///
    /// # Errors
    /// As [`t5_tokens`](Self::t5_tokens).
    fn prompt_tokens(&self, model: &Path) -> Result<usize> {
        const CLIP_TOKENS: usize = 77;
        Ok(match self.t5_tokens(model)? {
            0 => CLIP_TOKENS,
            tokens => tokens,
        })
    }

    /// Defaults of sampling options.
    fn defaults(&self) -> Defaults;

    /// The image sizes that the model in this folder supports.
    ///
    /// # Errors
    /// A configuration is missing or broken.
    fn sizes(&self, model: &Path) -> Result<ImageSizes>;

    /// The noise schedule of the model in this folder, if the family has a choice of samplers.
    ///
    /// # Errors
    /// `scheduler_config.json` is missing or broken.
    fn scheduler(&self, _model: &Path) -> Result<Option<SchedulerConfig>> {
        Ok(None)
    }

    /// Checks the schedule of the model in this folder, and that it can sample in so many `steps`, as far as
    /// [`scheduler`](Self::scheduler) does not cover it.
    ///
    /// # Errors
    /// It cannot, or the schedule is missing, broken or of another kind.
    fn check_schedule(&self, _model: &Path, _steps: Option<usize>) -> Result<()> {
        Ok(())
    }

    /// Whether it edits images by instruction instead of generating them from prompts.
    fn edits(&self) -> bool {
        false
    }

    /// The error for an editing model where a generating one is expected, or the other way round.
    fn other_purpose(&self, _model: &Path) -> Error {
        Error::setting("model", format!("{} does not edit by instruction", self.name())).hint(TO_EDIT)
    }

    /// Whether files hold latents packed as tokens `[B, L, 4·C]`, not as `[B, C, h, w]`.
    fn packs_latents(&self) -> bool {
        false
    }

    /// Opens everything except the text encoders, with unused weights where `place` says; `dtype` is that of the denoiser.
    ///
    /// # Errors
    /// A part is missing, broken or does not fit the others.
    fn open(&self, place: Placement, model: &Path, device: &Device, dtype: FloatDType) -> Result<Box<dyn Pipeline>>;

    /// The same with f32 weights of the denoiser drawn from `seed`, to train it from scratch.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn untrained(&self, place: Placement, model: &Path, seed: Seed, device: &Device) -> Result<Box<dyn Pipeline>>;

    /// The objective of its training.
    fn objective(&self) -> ObjectiveKind;

    /// The names of the model in this folder in metadata.
    ///
    /// # Errors
    /// A configuration is missing or broken.
    fn architecture(&self, model: &Path) -> Result<Architecture>;

    /// The folder that training all weights replaces.
    fn trained_part(&self) -> TrainedPart;
}

/// The hint for a user who wants to edit with a model that cannot.
const TO_EDIT: &str = "use an InstructPix2Pix model, or `kiln generate` with `image` to change an image";

/// Defaults of sampling options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Denoising steps.
    pub steps: usize,
    /// The guidance scale: of distilled guidance if there is a [`true_guidance`](Self::true_guidance), else of classifier-free
    /// guidance.
    pub guidance: f64,
    /// The scale of classifier-free guidance with a negative prompt, for families with distilled `guidance`.
    pub true_guidance: Option<f64>,
    /// The image guidance scale of an editing family.
    pub image_guidance: Option<f64>,
}

/// The names of an architecture in metadata standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// In the model specification of Stability AI, which viewers read (`modelspec.architecture`).
    pub name: &'static str,
    /// Whose code it is (`modelspec.implementation`).
    pub implementation: &'static str,
    /// In kohya's scripts (`ss_base_model_version`).
    pub version: &'static str,
}

/// The family of a model in the layout of diffusers, by the `_class_name` in its `model_index.json`.
///
/// # Errors
/// There is no such file, no family knows the class, or the model's configuration is broken.
pub fn of(model: impl AsRef<Path>) -> Result<&'static dyn Family> {
    #[derive(Deserialize)]
    struct ModelIndex {
        #[serde(rename = "_class_name")]
        class_name: String,
    }
    let (model, path) = (model.as_ref(), model.as_ref().join("model_index.json"));
    let index: ModelIndex = read_json(&path)?;
    for family in ALL {
        // diffusers records the class that saved the folder; the classes of one model differ in function, not in the saved files.
        if family.claims(model, &index.class_name)? {
            return Ok(family);
        }
    }
    let known: Vec<_> = ALL.iter().map(|family| family.classes()[0]).collect();
    Err(Error::file(path, format!("`_class_name` is {}, which kiln does not know", index.class_name))
        .hint(format!("use a model of one of these classes: {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> &'static dyn Family {
        of(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
    }

    #[test]
    fn a_model_is_of_the_family_that_its_class_and_its_unet_tell() {
        assert_eq!(
            ["flux", "flux_schnell_bf16", "ip2p"].map(|name| fixture(name).name()),
            ["FLUX.1", "FLUX.1", "InstructPix2Pix"]
        );
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd");
        assert_eq!(of(tiny).unwrap().name(), "Stable Diffusion");
    }

    #[test]
    fn an_unknown_class_is_refused_with_those_that_are_known() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name": "StableAudioPipeline"}"#).unwrap();
        let error = of(folder.path()).unwrap_err();
        assert!(error.message().contains("`_class_name` is StableAudioPipeline"), "{error}");
        let hint = error.hint.unwrap();
        assert!(hint.contains("FluxPipeline") && hint.contains("StableDiffusionInstructPix2PixPipeline"), "{hint}");
    }

    #[test]
    fn a_familys_answers_agree_with_each_other() {
        for family in ALL {
            assert_eq!(family.edits(), family.defaults().image_guidance.is_some(), "{family:?}");
            assert!(family.parts()[0] == family.denoiser().folder() && family.defaults().steps > 0, "{family:?}");
        }
    }
}
