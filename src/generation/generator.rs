//! Images of prompts that are embedded already, by a pipeline that somebody owns: a [`Session`](super::Session), or a training whose
//! model is looked at.

use burn::tensor::Tensor;
use image::RgbImage;

use super::SamplingOptions;
use crate::{
    error::Result,
    families::Family,
    models::text::PromptEmbeds,
    nn::Adapters,
    pipelines::{Pipeline, Request, Start, request::pick},
};

/// What to show, as the denoiser reads it.
pub(crate) struct Embedded {
    /// One row for each prompt.
    pub text: PromptEmbeds,
    /// The negative prompt, in one row, and the scale of guidance against it.
    pub negative: Option<(PromptEmbeds, f64)>,
}

/// Images that are made together.
pub(crate) struct Batch {
    /// For each image the number of its prompt and its seed.
    pub rows: Vec<(usize, u64)>,
    /// Where to start from, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// Raw latents of the images to change or to edit, `[B, C, h, w]`.
    pub pictures: Option<Tensor<4>>,
    /// How much to change them, unless the model edits.
    pub strength: f64,
    /// Where to change them, `[B, 1, h, w]`.
    pub mask: Option<Tensor<4>>,
}

/// A pipeline, and the family of its model, which has a default for what the options leave open.
#[derive(Clone, Copy)]
pub(crate) struct Generator<'a> {
    pub pipeline: &'a dyn Pipeline,
    pub family: &'a dyn Family,
}

impl Generator<'_> {
    /// The request that a batch is, with these adapters: one for all rows, one each, or none.
    pub fn request(
        &self,
        batch: &Batch,
        shown: &Embedded,
        options: &SamplingOptions,
        adapters: Vec<Adapters>,
    ) -> Request {
        let (prompts, seeds): (Vec<_>, Vec<_>) = batch.rows.iter().copied().unzip();
        let text = pick(&shown.text, &prompts);
        let (family, scaled) = (self.family, |raw| self.pipeline.vae().latent_scale().normalize(raw));
        let (original, start) = match (batch.pictures.clone(), self.pipeline.edits()) {
            (Some(raw), true) => {
                let latents = if options.scaled_condition { scaled(raw) } else { raw };
                (Some((latents, options.image_guidance(family))), None)
            }
            (Some(raw), false) => {
                let (strength, mask) = (batch.strength, batch.mask.clone());
                (None, Some(Start { latents: scaled(raw), strength, mask }))
            }
            (None, _) => (None, None),
        };
        Request {
            scheduler: options.scheduler,
            guidance: options.guidance(family),
            negative: shown.negative.clone(),
            original,
            start,
            adapters,
            ..Request::new(text, batch.noise.clone(), seeds, options.steps(family))
        }
    }

    /// The rows of an image in a call of the denoiser: with guidance, each has a row with the prompt and one without, and an edit
    /// one without its original.
    pub fn rows(&self, guided: bool) -> usize {
        let guided = usize::from(guided);
        1 + guided + guided * usize::from(self.pipeline.edits())
    }

    /// How many images of a size in latent pixels are made together where nobody says.
    pub fn pictures_that_fit(&self, size: (usize, usize), shown: &Embedded) -> usize {
        self.pipeline.pictures_that_fit(size, shown.text.prompt.dims()[1], self.rows(shown.negative.is_some()))
    }

    /// The images of a batch of any size, as many at a time as are sure to fit into memory.
    ///
    /// # Errors
    /// An image is not finite, or the process is asked to stop.
    pub fn make(
        &self,
        batch: &Batch,
        shown: &Embedded,
        options: &SamplingOptions,
        adapters: &[Adapters],
    ) -> Result<Vec<RgbImage>> {
        let request = self.request(batch, shown, options, adapters.to_vec());
        let [all, _, height, width] = batch.noise.dims();
        let together = self.pictures_that_fit((width, height), shown);
        let mut pictures = Vec::with_capacity(all);
        for first in (0..all).step_by(together) {
            let some = request.rows(first..(first + together).min(all));
            pictures.extend(self.pipeline.decode(self.pipeline.generate(&some, &mut |_| ())?)?);
        }
        Ok(pictures)
    }
}
