//! Requests to a [`Session`] with images in memory.

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use image::{GrayImage, RgbImage};

use super::{
    SamplingOptions, Session, Worn,
    generator::{Batch, Embedded},
    input,
    session::Prompts,
};
use crate::{
    error::{Error, Result},
    pipelines::{Denoising, OnStep, Outcome},
};

/// A request for images of one size, each with its own prompt and seed.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// A prompt or an instruction for each image.
    pub prompts: Vec<String>,
    /// A seed for each image.
    pub seeds: Vec<u64>,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Empty, or for each image its original or initial image, of the same size.
    pub originals: Vec<RgbImage>,
    /// The denoising strength, unless the model edits by instruction.
    pub strength: f64,
    /// An inpainting mask of the same size, white where images may change.
    pub mask: Option<GrayImage>,
    /// Sampling options.
    pub sampling: SamplingOptions,
}

impl Session {
    /// Checks a request as far as possible without weights.
    ///
    /// # Errors
    /// The model cannot generate such images, or parts of the request do not fit each other.
    pub fn check_images(&self, images: &Images) -> Result<()> {
        let Images { prompts, seeds, width, height, originals, mask, .. } = images;
        let (count, size) = (prompts.len(), (*width as u32, *height as u32));
        self.sizes().check(*width, *height)?;
        for (field, fits, problem) in [
            ("prompts", count > 0, "is empty"),
            ("seeds", seeds.len() == count, "must be one for each prompt"),
            ("originals", [0, count].contains(&originals.len()), "must be none, or one for each prompt"),
            ("originals", originals.iter().all(|image| image.dimensions() == size), "must have the size of the output"),
            ("originals", !(self.family.edits() && originals.is_empty()), "is empty, and this model edits images"),
            ("mask", mask.as_ref().is_none_or(|mask| mask.dimensions() == size), "must have the size of the output"),
            ("mask", mask.is_none() || !originals.is_empty(), "has no effect without images to edit"),
            ("mask", mask.is_none() || !self.family.edits(), "is not supported by models that edit by instruction"),
        ] {
            if !fits {
                return Err(Error::setting(field, problem));
            }
        }
        self.check(&images.sampling, prompts, if originals.is_empty() { 1.0 } else { images.strength })
    }

    /// Generates images. `on_step` is called after every denoising step, with its number and latents, and may cancel the rest, after which
    /// the session can be used as before.
    ///
    /// # Errors
    /// As [`check_images`](Self::check_images), which comes first; or weights cannot be loaded, or an image is not finite.
    pub fn make(&mut self, images: &Images, on_step: OnStep) -> Result<Outcome<Vec<RgbImage>>> {
        let worn = self.worn.clone();
        let (batch, shown) = self.prepare(images, &worn)?;
        self.denoise(&batch, &shown, &images.sampling, on_step)?.and_then(|latents| self.decode(latents))
    }

    /// Prepares images with these adapters: [`advance`](Self::advance) then denoises them step by step, together with others, and
    /// [`decode`](Self::decode) decodes the result. On the CPU in f32 each image has the same bits as alone.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn begin(&mut self, images: &Images, worn: &Worn) -> Result<Denoising> {
        let (batch, shown) = self.prepare(images, worn)?;
        self.ready(&batch, &shown, &images.sampling, worn)
    }

    /// The inputs of the images.
    fn prepare(&mut self, images: &Images, worn: &Worn) -> Result<(Batch, Embedded)> {
        self.check_images(images)?;
        let Images { prompts, seeds, width, height, originals, strength, mask, sampling } = images;
        let texts: Vec<String> = prompts.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let shown = self.embed(&Prompts::Texts(&texts), sampling, worn)?;
        let number = |prompt: &String| texts.binary_search(prompt).expect("every prompt is among the texts");
        let noise = seeds.iter().map(|&seed| self.pipeline.start_noise(seed, *width, *height)).collect();
        let batch = Batch {
            rows: prompts.iter().map(number).zip(seeds.iter().copied()).collect(),
            noise: Tensor::cat(noise, 0),
            pictures: (!originals.is_empty()).then(|| self.encode(originals)).transpose()?,
            strength: *strength,
            mask: mask.as_ref().map(|mask| input::latent_mask(mask, self.sizes().latent_pixel, &self.device)),
        };
        Ok((batch, shown))
    }
}
