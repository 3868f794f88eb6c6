//! Images of embedded prompts, on the pipeline of a [`Session`](super::Session) or of a training.

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

/// Embedded prompts.
pub(crate) struct Embedded {
    /// One row for each prompt.
    pub text: PromptEmbeds,
    /// The negative prompt, in one row, and the scale of guidance against it.
    pub negative: Option<(PromptEmbeds, f64)>,
}

/// A batch of images.
pub(crate) struct Batch {
    /// For each image the number of its prompt and its seed.
    pub rows: Vec<(usize, u64)>,
    /// The initial noise, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// Raw latents of the initial images or originals, `[B, C, h, w]`.
    pub pictures: Option<Tensor<4>>,
    /// The denoising strength, unless the model edits.
    pub strength: f64,
    /// The inpainting mask, `[B, 1, h, w]`.
    pub mask: Option<Tensor<4>>,
}

/// A pipeline, and the family of its model, which has the defaults of unset options.
#[derive(Clone, Copy)]
pub(crate) struct Generator<'a> {
    pub pipeline: &'a dyn Pipeline,
    pub family: &'a dyn Family,
}

impl Generator<'_> {
    /// The pipeline request of a batch, with these adapters: one set for all rows, one each, or none.
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

    /// The rows of an image in a call of the denoiser: with guidance, one with the prompt and one without, and for an edit one more
    /// without the original.
    pub fn rows(&self, guided: bool) -> usize {
        let guided = usize::from(guided);
        1 + guided + guided * usize::from(self.pipeline.edits())
    }

    /// The default batch size for images of a size in latent pixels.
    pub fn pictures_that_fit(&self, size: (usize, usize), shown: &Embedded) -> usize {
        self.pipeline.pictures_that_fit(size, shown.text.prompt.dims()[1], self.rows(shown.negative.is_some()))
    }

    /// Decodes a batch of any size, as many images at a time as fit in memory.
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
