//! The checks of a request that need no weights, before any are loaded.

use super::{SamplingOptions, Session};
use crate::{
    error::{Error, Result},
    pipelines::{pipeline::check_first, request::check_strength},
};

impl Session {
    /// Checks options, prompts, and the denoising strength (1 without initial images).
    ///
    /// # Errors
    /// An option is out of range or not supported by this model, an instruction is empty, or no denoising steps are left.
    pub fn check(&self, options: &SamplingOptions, prompts: &[String], strength: f64) -> Result<()> {
        options.check(self.family)?;
        if self.family.edits() && prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return Err(Error::setting("prompts", "is empty").hint("say what to change in the image"));
        }
        let strength = if self.family.edits() { 1.0 } else { strength };
        check_strength(strength)?;
        // The size of images affects the timesteps, not their number.
        let (sizes, steps) = (self.sizes(), options.steps(self.family));
        let side = sizes.native / sizes.latent_pixel;
        let (sampler, first) = self.pipeline.sampler(options.scheduler, steps, strength, (side, side))?;
        check_first(first, sampler.timesteps(), steps)
    }
}
