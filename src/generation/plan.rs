//! The memory plan of generating images, from configurations and headers.

use super::{SamplingOptions, Session, picture::fit};
use crate::{
    error::Result,
    memory::{self, LevelChoice, MemoryConfig, Phase, Plan},
    models::text::{TextEncoders, TextSizes},
    pipelines::Placement,
};

/// The size of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtOnce {
    /// Width and height in latent pixels.
    pub size: (usize, usize),
    /// The number of images.
    pub images: usize,
    /// Whether there are initial images to encode.
    pub encodes: bool,
}

impl Session {
    /// Sets the memory level for `work`: the one in `config`, or the fastest that fits.
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
        // The sum is for f32; 16 bits take half.
        let row = pipeline.bytes_of_row(width, height, tokens, &level.limits()) * self.dtype_size() / 4;
        let rows = (self.generator().rows(options.negative(self.family).is_some()) * work.images) as u64;
        let side = pipeline.sizes().latent_pixel;
        // The text encoders run one after the other.
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

    /// Sets the memory level of the model for a batch of `images` images of its native size, if `config` names none.
    ///
    /// # Errors
    /// No level fits the free memory.
    pub fn fit_native(&mut self, config: &MemoryConfig, images: usize) -> Result<Plan> {
        let sizes = self.sizes();
        let side = sizes.native / sizes.latent_pixel;
        self.fit(config, AtOnce { size: (side, side), images, encodes: true }, &SamplingOptions::default())
    }

    /// How many images of a size in pixels can be denoised together in the memory that is currently free; at least one.
    ///
    /// # Errors
    /// The text encoders' configurations are broken.
    pub fn images_at_once(&self, (width, height): (usize, usize)) -> Result<usize> {
        let (factor, tokens) = (self.sizes().latent_pixel, self.family.prompt_tokens(&self.folder)?);
        Ok(self.pipeline.pictures_that_fit((width / factor, height / factor), tokens, self.generator().rows(true)))
    }

    /// The processed size of an image of this size: of no more pixels than a square with sides of `most` pixels, with the same
    /// proportions; both sides are rounded to multiples that the model supports.
    pub fn working_size(&self, size: (u32, u32), most: usize) -> (u32, u32) {
        fit(size, most, self.sizes().step)
    }
}
