//! The memory plan of making images, from configurations and headers alone.

use super::{SamplingOptions, Session, picture::fit};
use crate::{
    error::Result,
    memory::{self, LevelChoice, MemoryConfig, Phase, Plan},
    models::text::{TextEncoders, TextSizes},
    pipelines::Placement,
};

/// How much is made at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtOnce {
    /// Width and height in latent pixels.
    pub size: (usize, usize),
    /// Images made together.
    pub images: usize,
    /// Whether they start from others, which are encoded.
    pub encodes: bool,
}

impl Session {
    /// Chooses the memory level for `work`, if it is not named; weights then lie where the level says.
    ///
    /// # Errors
    /// No level fits, or the text encoders' files are broken.
    pub(super) fn fit(&mut self, config: &MemoryConfig, work: AtOnce, options: &SamplingOptions) -> Result<Plan> {
        let text = TextEncoders::sizes(&self.folder, &self.device, self.dtype)?;
        let plans = memory::Level::ALL.into_iter().map(|level| self.plan(level, text, work, options));
        let plans = plans.collect::<Result<Vec<_>>>()?;
        let plan = Plan::choose(config, memory::available(&self.device), plans)?;
        self.work_at(plan.level);
        self.may_step_down = config.level == LevelChoice::Auto;
        Ok(plan)
    }

    /// The plan of `work` at a level.
    fn plan(&self, level: memory::Level, text: TextSizes, work: AtOnce, options: &SamplingOptions) -> Result<Plan> {
        let (place, pipeline) = (Placement::from(level), &self.pipeline);
        let (denoiser, vae) = (pipeline.denoiser_sizes(), pipeline.vae().sizes());
        let (kept, vae_kept) = (denoiser.kept_at(place.denoiser), vae.kept_at(place.vae));
        let tokens = self.family.prompt_tokens(&self.folder)?;
        let (width, height) = work.size;
        // The sum is of f32; half of it in 16 bits.
        let row = pipeline.bytes_of_row(width, height, tokens, &level.limits()) * self.dtype_size() / 4;
        let rows = (self.generator().rows(options.negative(self.family).is_some()) * work.images) as u64;
        let side = pipeline.sizes().latent_pixel;
        // One after the other.
        let images = pipeline.vae().bytes_of_image([width * side, height * side], &level.limits());
        let with_vae = |name, denoiser| {
            Phase::new(name, [("denoiser", denoiser), ("VAE", vae_kept.max(vae.largest)), ("activations", images)])
        };
        let mut phases = vec![Phase::new("text", [("text encoders", text.at(place.text))])];
        phases.extend(work.encodes.then(|| with_vae("encode", kept)));
        phases.push(Phase::new(
            "denoise",
            [("denoiser", denoiser.at(place.denoiser)), ("VAE", vae_kept), ("activations", row * rows)],
        ));
        phases.push(with_vae("decode", if level == memory::Level::None { kept } else { 0 }));
        Ok(Plan { level, phases })
    }

    /// Chooses the memory level of the model for `images` of its native size together, if `config` names none: from now on weights
    /// lie where it says.
    ///
    /// # Errors
    /// No level fits into the memory that is free.
    pub fn fit_native(&mut self, config: &MemoryConfig, images: usize) -> Result<Plan> {
        let sizes = self.sizes();
        let side = sizes.native / sizes.latent_pixel;
        self.fit(config, AtOnce { size: (side, side), images, encodes: true }, &SamplingOptions::default())
    }

    /// How many images of a size in pixels can be denoised together in the memory that is free now, at least one.
    ///
    /// # Errors
    /// The text encoders' configurations are broken.
    pub fn images_at_once(&self, (width, height): (usize, usize)) -> Result<usize> {
        let (factor, tokens) = (self.sizes().latent_pixel, self.family.prompt_tokens(&self.folder)?);
        Ok(self.pipeline.pictures_that_fit((width / factor, height / factor), tokens, self.generator().rows(true)))
    }

    /// The size at which the model works on a given image of this size: as large, but no larger than a square of `most` pixels a
    /// side, in the same proportions; both sides are rounded to the steps of the model's sizes.
    pub fn working_size(&self, size: (u32, u32), most: usize) -> (u32, u32) {
        fit(size, most, self.sizes().step)
    }
}
