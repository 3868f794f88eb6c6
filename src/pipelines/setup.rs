//! How pictures are made, whatever they show.

use std::path::{Path, PathBuf};

use super::ModelKind;
use crate::{
    error::{Error, Result},
    paths,
    schedulers::{SchedulerName, flow_match::MOST_STEPS},
};

/// What is not given takes the value that suits the kind of model.
///
/// As command-line arguments, these are options of every command that makes pictures.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Setup {
    /// A LoRA file of diffusers, PEFT, kohya or ComfyUI, with a strength (1 if left out); may be repeated
    #[arg(long = "lora", value_name = "FILE[@SCALE]", value_parser = lora)]
    pub loras: Vec<(PathBuf, f64)>,
    /// The sampler of a Stable Diffusion model [default: what the model comes with]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<SchedulerName>,
    /// Denoising steps [default: 28 for FLUX.1, 30 for Stable Diffusion, 20 for InstructPix2Pix]
    #[arg(long)]
    pub steps: Option<usize>,
    /// How strongly to follow the text [default: 3.5 for FLUX.1, whose models without that input ignore it, else 7.5]
    #[arg(long)]
    pub guidance: Option<f64>,
    /// How strongly to keep to the picture, for models that edit [default: 1.5]
    #[arg(long)]
    pub image_guidance: Option<f64>,
    /// What to keep away from; with FLUX.1 it doubles the time
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// How strongly to keep away from the negative prompt, with FLUX.1 [default: 4]
    #[arg(long, requires = "negative_prompt")]
    pub true_guidance: Option<f64>,
    /// For models trained with `edit.scaled_condition`, and CosXL: they read scaled latents of the picture, not raw ones
    #[arg(long)]
    pub scaled_condition: bool,
}

impl Setup {
    /// Whether all options are in their ranges and mean something to this kind of model, which reads a picture to edit or not.
    ///
    /// # Errors
    /// The first that does not.
    pub(super) fn check(&self, kind: ModelKind, edits: bool) -> Result<()> {
        if let Some(steps) = self.steps.filter(|steps| !(1..=MOST_STEPS).contains(steps)) {
            return Err(Error::setting("--steps", format!("must be at least 1 and at most {MOST_STEPS}, not {steps}")));
        }
        for (option, number) in [
            ("--guidance", self.guidance),
            ("--image-guidance", self.image_guidance),
            ("--true-guidance", self.true_guidance),
        ] {
            if let Some(number) = number.filter(|number| !(number.is_finite() && *number >= 0.0)) {
                return Err(Error::setting(option, format!("{number} is not a number from 0 on")));
            }
        }
        let flux = kind == ModelKind::Flux;
        for (option, given, fits, hint) in [
            ("--scheduler", self.scheduler.is_some(), !flux, "FLUX.1 has one sampler only; leave the option out"),
            ("--true-guidance", self.true_guidance.is_some(), flux, "use `--guidance` with Stable Diffusion"),
            ("--image-guidance", self.image_guidance.is_some(), edits, "it is for models that edit a picture"),
            ("--scaled-condition", self.scaled_condition, edits, "it is for models that edit a picture"),
        ] {
            if given && !fits {
                return Err(Error::setting(option, "means nothing to this kind of model").hint(hint));
            }
        }
        Ok(())
    }

    /// The steps to make.
    pub(super) fn steps(&self, kind: ModelKind) -> usize {
        self.steps.unwrap_or(match kind {
            ModelKind::Flux => 28,
            ModelKind::StableDiffusion => 30,
            ModelKind::InstructPix2Pix => 20,
        })
    }

    /// FLUX.1's distilled guidance, or the strength of classifier-free guidance.
    pub(super) fn guidance(&self, kind: ModelKind) -> f64 {
        self.guidance.unwrap_or(if kind == ModelKind::Flux { 3.5 } else { 7.5 })
    }

    /// What to keep away from, and how strongly: FLUX.1 needs no second prompt for its guidance, the older models do.
    pub(super) fn negative(&self, kind: ModelKind) -> Option<(&str, f64)> {
        match (self.negative_prompt.as_deref(), kind) {
            (None, ModelKind::Flux) => None,
            (Some(prompt), ModelKind::Flux) => Some((prompt, self.true_guidance.unwrap_or(4.0))),
            (prompt, _) => Some((prompt.unwrap_or(""), self.guidance(kind))),
        }
    }
}

/// `FILE@SCALE` or `FILE`. What follows the last `@` is a scale only if it is a number.
fn lora(text: &str) -> std::result::Result<(PathBuf, f64), String> {
    let scale = |text: &str| text.parse::<f64>().ok().filter(|scale| scale.is_finite());
    let scaled = text.rsplit_once('@').and_then(|(file, end)| Some((file, scale(end)?)));
    let (file, scale) = scaled.unwrap_or((text, 1.0));
    Ok((paths::meant(Path::new(file))?, scale))
}
