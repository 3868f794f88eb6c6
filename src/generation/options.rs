//! Sampling options.

use crate::{
    error::{Error, Result},
    families::Family,
    schedulers::{SchedulerName, flow_match::MOST_STEPS},
};

/// Sampling options. Unset options take the defaults of the model's [`Family`].
#[derive(Clone, Debug, Default)]
pub struct SamplingOptions {
    /// The sampler, instead of the model's own.
    pub scheduler: Option<SchedulerName>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale.
    pub guidance: Option<f64>,
    /// Image guidance scale of an editing model.
    pub image_guidance: Option<f64>,
    /// Negative prompt.
    pub negative_prompt: Option<String>,
    /// Scale of classifier-free guidance with a negative prompt, for models with distilled `guidance`.
    pub true_guidance: Option<f64>,
    /// Whether an editing model reads scaled latents of the original instead of raw ones.
    pub scaled_condition: bool,
}

impl SamplingOptions {
    /// Checks that all options are in range and supported by the family. The sampler is checked by the pipeline.
    ///
    /// # Errors
    /// The first invalid option.
    pub(super) fn check(&self, family: &dyn Family) -> Result<()> {
        if let Some(steps) = self.steps.filter(|steps| !(1..=MOST_STEPS).contains(steps)) {
            return Err(Error::setting("steps", format!("must be at least 1 and at most {MOST_STEPS}, not {steps}")));
        }
        for (field, number) in [
            ("guidance", self.guidance),
            ("image_guidance", self.image_guidance),
            ("true_guidance", self.true_guidance),
        ] {
            if let Some(number) = number.filter(|number| !(number.is_finite() && *number >= 0.0)) {
                return Err(Error::setting(field, format!("must be a number of at least 0, not {number}")));
            }
        }
        let (edits, distilled) = (family.edits(), family.defaults().true_guidance.is_some());
        for (field, given, supported, hint) in [
            ("true_guidance", self.true_guidance.is_some(), distilled, "use `guidance`"),
            (
                "image_guidance",
                self.image_guidance.is_some(),
                edits,
                "leave it out: it is for models that edit an image",
            ),
            ("scaled_condition", self.scaled_condition, edits, "leave it out: it is for models that edit an image"),
        ] {
            if given && !supported {
                return Err(Error::setting(field, format!("is not supported by {}", family.name())).hint(hint));
            }
        }
        Ok(())
    }

    /// The number of denoising steps.
    pub(super) fn steps(&self, family: &dyn Family) -> usize {
        self.steps.unwrap_or(family.defaults().steps)
    }

    /// The guidance scale.
    pub(super) fn guidance(&self, family: &dyn Family) -> f64 {
        self.guidance.unwrap_or(family.defaults().guidance)
    }

    /// The image guidance scale; 1 (off) for families without it.
    pub(super) fn image_guidance(&self, family: &dyn Family) -> f64 {
        self.image_guidance.or(family.defaults().image_guidance).unwrap_or(1.0)
    }

    /// The negative prompt and the scale of classifier-free guidance against it. With distilled `guidance` there is none unless it is
    /// requested; otherwise `guidance` is the scale, and the negative prompt is empty by default.
    pub(crate) fn negative(&self, family: &dyn Family) -> Option<(&str, f64)> {
        let prompt = self.negative_prompt.as_deref();
        match family.defaults().true_guidance {
            Some(scale) => prompt.map(|prompt| (prompt, self.true_guidance.unwrap_or(scale))),
            None => Some((prompt.unwrap_or(""), self.guidance(family))),
        }
    }
}
