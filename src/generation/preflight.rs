//! The checks of a request that need no weights, made before any are loaded.

use super::{SamplingOptions, Session};
use crate::{
    error::{Error, Result},
    pipelines::{pipeline::check_first, request::check_strength},
};

impl Session {
    /// Checks options, prompts, and how much images are to change: 1 if there are none.
    ///
    /// # Errors
    /// An option is out of its range or not supported by this model, an instruction to edit by is empty, or nothing is left to
    /// do.
    pub fn check(&self, options: &SamplingOptions, prompts: &[String], strength: f64) -> Result<()> {
        options.check(self.family)?;
        if self.family.edits() && prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return Err(Error::setting("prompts", "is empty").hint("say what to change in the image"));
        }
        let strength = if self.family.edits() { 1.0 } else { strength };
        check_strength(strength)?;
        // How large images are changes when steps are taken, not how many there are.
        let (sizes, steps) = (self.sizes(), options.steps(self.family));
        let side = sizes.native / sizes.latent_pixel;
        let (sampler, first) = self.pipeline.sampler(options.scheduler, steps, strength, (side, side))?;
        check_first(first, sampler.timesteps(), steps)
    }
}
