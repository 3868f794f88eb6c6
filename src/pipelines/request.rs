//! A request to a pipeline.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::{
    error::{Error, Result},
    models::text::PromptEmbeds,
    nn::Adapters,
    schedulers::SchedulerName,
};

/// A request for one batch of images.
#[derive(Clone, Debug)]
pub struct Request {
    /// One row for each image.
    pub text: PromptEmbeds,
    /// The initial noise: standard normal `[B, C, h, w]` in latent size, f32.
    pub noise: Tensor<4>,
    /// A seed for each image, for samplers that add noise between two steps.
    pub seeds: Vec<u64>,
    /// Sampling steps.
    pub steps: usize,
    /// The sampler, instead of the model's own.
    pub scheduler: Option<SchedulerName>,
    /// The distilled guidance that FLUX.1-dev takes as an input (3.5 is usual); other models ignore it.
    pub guidance: f64,
    /// Classifier-free guidance by text: the negative prompt (one row for all, or one each), and the scale, which is active
    /// above 1.
    pub negative: Option<(PromptEmbeds, f64)>,
    /// Source images for an editing model: latents `[B, C, h, w]` as in its training (raw ones for InstructPix2Pix), and the image
    /// guidance scale, which is active from 1 on and only together with text guidance.
    pub original: Option<(Tensor<4>, f64)>,
    /// Initial images, to which the noise is added.
    pub start: Option<Start>,
    /// The adapters: none, one set for all images, or one for each.
    pub adapters: Vec<Adapters>,
}

/// The initial images of image-to-image and inpainting.
#[derive(Clone, Debug)]
pub struct Start {
    /// Scaled latents of the images, `[B, C, h, w]`, f32.
    pub latents: Tensor<4>,
    /// The denoising strength: near 0 nothing changes, at 1 hardly anything is kept.
    pub strength: f64,
    /// The mask: 1 where the image is repainted, 0 where it stays: `[B, 1, h, w]`, or `[1, 1, h, w]` for all.
    pub mask: Option<Tensor<4>>,
}

impl Start {
    /// Whether nothing of the images shows through the noise, so that masked pixels are generated from noise alone.
    pub(super) fn is_free(&self) -> bool {
        self.mask.is_some() && self.strength == 1.0
    }
}

/// The inputs of the network for each row, besides latents and time.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The prompts.
    pub text: PromptEmbeds,
    /// Latents of source images as inputs of the network, `[R, C, h, w]`; zero if there is none.
    pub original: Option<Tensor<4>>,
    /// The distilled guidance, one for each row.
    pub guidance: Vec<f64>,
    /// The adapters: none, or those of each row.
    pub adapters: Vec<Adapters>,
}

impl Condition {
    /// Concatenates the rows of several conditions, with the number of rows of each.
    pub(super) fn join(all: &[&Self]) -> Self {
        let rows = |one: &Self| one.guidance.len();
        let wear = all.iter().any(|one| !one.adapters.is_empty());
        let worn = |one: &Self| match one.adapters.is_empty() {
            true => vec![Adapters::default(); rows(one)],
            false => one.adapters.clone(),
        };
        let originals: Vec<_> = all.iter().filter_map(|one| one.original.clone()).collect();
        Self {
            text: join(&all.iter().map(|one| one.text.clone()).collect::<Vec<_>>()),
            original: (!originals.is_empty()).then(|| Tensor::cat(originals, 0)),
            guidance: all.iter().flat_map(|one| one.guidance.clone()).collect(),
            adapters: if wear { all.iter().flat_map(|one| worn(one)).collect() } else { Vec::new() },
        }
    }
}

impl Request {
    /// Text to image, without guidance.
    pub fn new(text: PromptEmbeds, noise: Tensor<4>, seeds: Vec<u64>, steps: usize) -> Self {
        Self {
            text,
            noise,
            seeds,
            steps,
            scheduler: None,
            guidance: 1.0,
            negative: None,
            original: None,
            start: None,
            adapters: Vec::new(),
        }
    }

    /// Some of the rows, as a request.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (all, numbers) = (self.seeds.len(), rows.clone().collect::<Vec<_>>());
        let part = |tensor: &Tensor<4>| match tensor.dims()[0] == all {
            true => tensor.clone().narrow(0, rows.start, rows.len()),
            false => tensor.clone(), // one for all
        };
        let text = |embeds: &PromptEmbeds| match embeds.prompt.dims()[0] == all {
            true => pick(embeds, &numbers),
            false => embeds.clone(),
        };
        Self {
            text: text(&self.text),
            noise: part(&self.noise),
            seeds: self.seeds[rows.clone()].to_vec(),
            negative: self.negative.as_ref().map(|(embeds, scale)| (text(embeds), *scale)),
            original: self.original.as_ref().map(|(latents, scale)| (part(latents), *scale)),
            adapters: match self.adapters.len() == all {
                true => self.adapters[rows.clone()].to_vec(),
                false => self.adapters.clone(), // one for all, or none
            },
            start: self.start.as_ref().map(|start| Start {
                latents: part(&start.latents),
                mask: start.mask.as_ref().map(part),
                ..*start
            }),
            ..*self
        }
    }

    /// The denoising strength; 1 without initial images.
    pub(super) fn strength(&self) -> f64 {
        self.start.as_ref().map_or(1.0, |start| start.strength)
    }

    /// Checks the request for a model that takes images to `edit`, or does not.
    ///
    /// # Errors
    /// A setting is out of range, parts differ in size, or a source image is missing or not supported.
    pub(super) fn check(&self, edits: bool) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::setting("steps", "must be at least 1"));
        }
        check_strength(self.strength())?;
        match (edits, self.original.is_some()) {
            (true, false) => return Err(Error::setting("image", "this model edits an image, and none is given")),
            (false, true) => return Err(Error::setting("image", "this model does not read an image to edit")),
            _ => {}
        }
        let shape = self.noise.dims();
        let [rows, _, height, width] = shape;
        let mask = self.start.as_ref().and_then(|start| start.mask.as_ref()).map(Tensor::dims);
        // Rows, tokens and features of the prompts; rows and features of the pooled embeddings.
        let sizes = |text: &PromptEmbeds| {
            let ([rows, tokens, features], [pooled_rows, pooled]) = (text.prompt.dims(), text.pooled.dims());
            ([rows, pooled_rows], [tokens, features, pooled])
        };
        let (text_rows, text) = sizes(&self.text);
        let beside_text = |(own_rows, own): ([usize; 2], _)| [[1, 1], [rows, rows]].contains(&own_rows) && own == text;
        for (part, fits) in [
            ("text", text_rows == [rows, rows]),
            ("seeds", self.seeds.len() == rows),
            ("negative", self.negative.as_ref().is_none_or(|(negative, _)| beside_text(sizes(negative)))),
            ("original", self.original.as_ref().is_none_or(|(latents, _)| latents.dims() == shape)),
            ("start", self.start.as_ref().is_none_or(|start| start.latents.dims() == shape)),
            ("adapters", [0, 1, rows].contains(&self.adapters.len())),
            ("mask", mask.is_none_or(|[b, c, h, w]| [1, rows].contains(&b) && [c, h, w] == [1, height, width])),
        ] {
            if !fits {
                let text = self.text.prompt.dims();
                let problem = format!("does not fit noise of the shape {shape:?} and text of the shape {text:?}");
                return Err(Error::setting(part, problem));
            }
        }
        Ok(())
    }

    /// The conditions as one batch of `K·B` rows, and the weights of the `K` predictions, which add up to 1.
    ///
    /// With text `t` against `n` at scale `s` (Ho & Salimans 2022): `n + s·(t - n)`.
    /// With an image too (Brooks et al. 2023, eq. 3), text scale `s`, image scale `i`, and `u` with neither:
    /// `u + s·(ti - ni) + i·(ni - u)`. Here each is written with one weight for each prediction.
    pub(super) fn conditions(&self) -> (Condition, Vec<f64>) {
        let rows = self.noise.dims()[0];
        // One row each.
        let none = |embeds: &PromptEmbeds| match embeds.prompt.dims()[0] {
            1 => pick(embeds, &vec![0; rows]),
            _ => embeds.clone(),
        };
        let (mut texts, mut originals, mut weights) = (vec![self.text.clone()], Vec::new(), vec![1.0]);
        match (&self.negative, self.original.clone()) {
            (Some((negative, s)), None) if *s > 1.0 => {
                texts.push(none(negative));
                weights = vec![*s, 1.0 - s];
            }
            (Some((negative, s)), Some((original, i))) if *s > 1.0 && i >= 1.0 => {
                texts.extend([none(negative), none(negative)]); // with the picture, and without
                let none = original.zeros_like();
                originals = vec![original.clone(), original, none];
                weights = vec![*s, i - s, 1.0 - i];
            }
            (_, original) => originals.extend(original.map(|(latents, _)| latents)),
        }
        let original = (!originals.is_empty()).then(|| Tensor::cat(originals, 0));
        let all = rows * weights.len();
        let adapters =
            self.adapters.iter().cycle().take(if self.adapters.is_empty() { 0 } else { all }).cloned().collect();
        (Condition { text: join(&texts), original, guidance: vec![self.guidance; all], adapters }, weights)
    }
}

/// # Errors
/// It is not a valid denoising strength.
pub(crate) fn check_strength(strength: f64) -> Result<()> {
    match strength > 0.0 && strength <= 1.0 {
        true => Ok(()),
        false => Err(Error::setting("strength", format!("{strength} is not above 0 and at most 1"))),
    }
}

/// The rows with these numbers, in this order; numbers may repeat.
pub(crate) fn pick(embeds: &PromptEmbeds, rows: &[usize]) -> PromptEmbeds {
    let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let indices = Tensor::from_data(TensorData::new(indices, [rows.len()]), &embeds.prompt.device());
    PromptEmbeds {
        prompt: embeds.prompt.clone().select(0, indices.clone()),
        pooled: embeds.pooled.clone().select(0, indices),
    }
}

/// All rows, one after the other.
pub(crate) fn join(parts: &[PromptEmbeds]) -> PromptEmbeds {
    PromptEmbeds {
        prompt: Tensor::cat(parts.iter().map(|part| part.prompt.clone()).collect(), 0),
        pooled: Tensor::cat(parts.iter().map(|part| part.pooled.clone()).collect(), 0),
    }
}

/// A value for each row, `[R]`, f32.
pub(super) fn numbers(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
