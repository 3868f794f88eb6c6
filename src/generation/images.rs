//! Images made from what is in memory: one request to a [`Session`].

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

/// Images to make together: of one size, each with a prompt and a seed of its own.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// A text or an instruction for each image.
    pub prompts: Vec<String>,
    /// A seed for each image.
    pub seeds: Vec<u64>,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// None, or for each image the one to edit or to start from, of the same size.
    pub originals: Vec<RgbImage>,
    /// The share of the steps to run on an original, unless the model edits by instruction.
    pub strength: f64,
    /// Where to change the originals: white in an image of their size.
    pub mask: Option<GrayImage>,
    /// How they are made.
    pub sampling: SamplingOptions,
}

impl Session {
    /// Checks a request as far as that needs no weights.
    ///
    /// # Errors
    /// The model cannot make such images, or parts of the request do not go together.
    pub fn check_images(&self, images: &Images) -> Result<()> {
        let Images { prompts, seeds, width, height, originals, mask, .. } = images;
        let (count, size) = (prompts.len(), (*width as u32, *height as u32));
        self.sizes().check(*width, *height)?;
        for (field, fits, problem) in [
            ("prompts", count > 0, "is empty"),
            ("seeds", seeds.len() == count, "must be one for each prompt"),
            ("originals", [0, count].contains(&originals.len()), "must be none, or one for each prompt"),
            ("originals", originals.iter().all(|image| image.dimensions() == size), "must have the size to make"),
            ("originals", !(self.family.edits() && originals.is_empty()), "is empty, and this model edits images"),
            ("mask", mask.as_ref().is_none_or(|mask| mask.dimensions() == size), "must have the size to make"),
            ("mask", mask.is_none() || !originals.is_empty(), "is of no use without originals"),
            ("mask", mask.is_none() || !self.family.edits(), "is not supported by models that edit by instruction"),
        ] {
            if !fits {
                return Err(Error::setting(field, problem));
            }
        }
        self.check(&images.sampling, prompts, if originals.is_empty() { 1.0 } else { images.strength })
    }

    /// Makes images. `on_step` is called after every denoising step, with its number and the latents it came to, and may cancel
    /// the rest; the session is as good as before.
    ///
    /// # Errors
    /// As [`check_images`](Self::check_images), which comes first; weights cannot be loaded, or an image is not finite.
    pub fn make(&mut self, images: &Images, on_step: OnStep) -> Result<Outcome<Vec<RgbImage>>> {
        let worn = self.worn.clone();
        let (batch, shown) = self.prepare(images, &worn)?;
        self.denoise(&batch, &shown, &images.sampling, on_step)?.and_then(|latents| self.decode(latents))
    }

    /// Makes ready to denoise images that wear these adapters: then [`advance`](Self::advance) takes them on, step by step and
    /// together with others, and [`decode`](Self::decode) makes images of what they come to. On the CPU in f32 each has the bits
    /// that it has alone.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn begin(&mut self, images: &Images, worn: &Worn) -> Result<Denoising> {
        let (batch, shown) = self.prepare(images, worn)?;
        self.ready(&batch, &shown, &images.sampling, worn)
    }

    /// What to make images from.
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
