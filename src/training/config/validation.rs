//! `[validation]`: held-out loss and sample images.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Rule;
use crate::{
    pipelines::LARGEST_SIDE,
    schedulers::{SchedulerName, flow_match::MOST_STEPS},
};

/// `[validation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between two validations. Default 250. There is always one before the first step and one after the last; 0 means only
    /// these. It does not affect training: it has random numbers of its own.
    pub every: u64,
    /// FLUX.1: captions to generate images for, without and with the adapter. Default none. Include one without the subject,
    /// to see what else the adapter changes.
    pub prompts: Vec<String>,
    /// Stable Diffusion: how many held-out pairs are edited, each shown as original, edits and target. Default 4.
    pub edits: usize,
    /// Seeds of the images: each prompt, or pair, is generated once per seed. Default `[0]`.
    pub seeds: Vec<u64>,
    /// Denoising steps per image. Default 20.
    pub steps: usize,
    /// FLUX.1: width of the images in pixels, a multiple of 16. Default 512.
    pub width: usize,
    /// FLUX.1: height of the images in pixels, a multiple of 16. Default 512.
    pub height: usize,
    /// FLUX.1: guidance scale of the images. Default 3.5, as FLUX.1-dev is sampled. It is independent of `objective.guidance`, and
    /// has no effect on models without a guidance input.
    pub guidance: f64,
    /// FLUX.1: classifier-free guidance scale of the images, at twice the time: for models without a guidance input that were
    /// trained with `data.caption_dropout`. Default 1.0, which is off; 2 to 4 is usual.
    pub true_guidance: f64,
    /// Stable Diffusion: guidance scale of the instruction. Default 7.5; 1 or less turns guidance off.
    pub text_guidance: f64,
    /// Stable Diffusion: image guidance scale. Default 1.5; at 1 the original has no guidance of its own, and below 1 there is no
    /// guidance at all.
    pub image_guidance: f64,
    /// Stable Diffusion: the sampler of the edits, such as `"dpm_solver"`. Default: the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerName>,
    /// FLUX.1: noise levels at which the held-out loss is measured. Default `[0.1, 0.3, 0.5, 0.7, 0.9]`.
    pub sigmas: Vec<f64>,
    /// Stable Diffusion: timesteps at which the held-out loss is measured, from 0 to 999. Default
    /// `[100, 300, 500, 700, 900]`.
    pub timesteps: Vec<u32>,
}

/// The most images of one validation.
const MOST_PICTURES: usize = 1000;

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 250,
            prompts: vec![],
            edits: 4,
            seeds: vec![0],
            steps: 20,
            width: 512,
            height: 512,
            guidance: 3.5,
            true_guidance: 1.0,
            text_guidance: 7.5,
            image_guidance: 1.5,
            scheduler: None,
            sigmas: vec![0.1, 0.3, 0.5, 0.7, 0.9],
            timesteps: vec![100, 300, 500, 700, 900],
        }
    }
}

impl ValidationConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let size_holds = |pixels: usize| (16..=LARGEST_SIDE).contains(&pixels) && pixels.is_multiple_of(16);
        let pictures = self.prompts.len().max(1).saturating_mul(self.seeds.len());
        let seeds_hold = self.prompts.is_empty() || !self.seeds.is_empty();
        let guidance_holds = |guidance: f64| guidance.is_finite() && guidance >= 0.0;
        let sigmas_hold = !self.sigmas.is_empty() && self.sigmas.iter().all(|&sigma| sigma > 0.0 && sigma <= 1.0);
        vec![
            (seeds_hold, "validation.seeds", "must hold at least one seed for the images"),
            (pictures <= MOST_PICTURES, "validation.seeds", "must not make more than 1000 images with all the prompts"),
            ((1..=MOST_STEPS).contains(&self.steps), "validation.steps", "must be from 1 to 10000"),
            (size_holds(self.width), "validation.width", "must be a multiple of 16 pixels, at most 8192"),
            (size_holds(self.height), "validation.height", "must be a multiple of 16 pixels, at most 8192"),
            (guidance_holds(self.guidance), "validation.guidance", "must be at least 0"),
            (guidance_holds(self.true_guidance), "validation.true_guidance", "must be at least 0"),
            (guidance_holds(self.text_guidance), "validation.text_guidance", "must be at least 0"),
            (guidance_holds(self.image_guidance), "validation.image_guidance", "must be at least 0"),
            (!self.timesteps.is_empty(), "validation.timesteps", "must hold at least one timestep"),
            (sigmas_hold, "validation.sigmas", "must hold noise levels above 0 and up to 1"),
        ]
    }
}
