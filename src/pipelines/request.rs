//! A request to a pipeline.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::{
    error::{Error, Result},
    models::text::PromptEmbeds,
    nn::Adapters,
    schedulers::SchedulerName,
};

/// What to make. All rows are made together, as one batch.
#[derive(Clone, Debug)]
pub struct Request {
    /// One row for each image.
    pub text: PromptEmbeds,
    /// Where to start from: standard normal noise `[B, C, h, w]` in latent size, f32.
    pub noise: Tensor<4>,
    /// One for each image, for samplers that add noise between two steps.
    pub seeds: Vec<u64>,
    /// Steps of the sampler.
    pub steps: usize,
    /// The sampler, in place of the model's own.
    pub scheduler: Option<SchedulerName>,
    /// The distilled guidance that FLUX.1-dev takes as an input (3.5 suits it); other models ignore it.
    pub guidance: f64,
    /// Classifier-free guidance by text: what to keep away from (one row for all, or one each), and how strongly. In force
    /// above 1.
    pub negative: Option<(PromptEmbeds, f64)>,
    /// The images to edit, for a model that reads them: latents `[B, C, h, w]` as it was trained with, which are raw ones in
    /// InstructPix2Pix, and the guidance by them, in force from 1 on and together with that by text.
    pub original: Option<(Tensor<4>, f64)>,
    /// Images to start from, with the noise on top.
    pub start: Option<Start>,
    /// What the network wears: nothing, one for all images, or one for each.
    pub adapters: Vec<Adapters>,
}

/// Where image-to-image and inpainting start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Scaled latents of the images, `[B, C, h, w]`, f32.
    pub latents: Tensor<4>,
    /// The share of the steps to run: near 0 nothing changes, at 1 hardly anything is left.
    pub strength: f64,
    /// 1 where something new is to be, 0 where the image is to stay: `[B, 1, h, w]`, or `[1, 1, h, w]` for all.
    pub mask: Option<Tensor<4>>,
}

impl Start {
    /// Whether nothing of the images shows through the noise: what is masked is then made up from noise alone.
    pub(super) fn is_free(&self) -> bool {
        self.mask.is_some() && self.strength == 1.0
    }
}

/// What the network is told about each row, besides latents and time.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The prompts.
    pub text: PromptEmbeds,
    /// Latents of the images to edit as the network reads them, `[R, C, h, w]`; zero where there is none.
    pub original: Option<Tensor<4>>,
    /// The distilled guidance, one for each row.
    pub guidance: Vec<f64>,
    /// What the network wears: nothing, or for each row what it does.
    pub adapters: Vec<Adapters>,
}

impl Condition {
    /// All rows of some conditions, one after the other, and how many each of them has.
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

    /// Some of the rows, as a request of their own.
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

    /// How the share of steps to run is told: 1 without an image to start from.
    pub(super) fn strength(&self) -> f64 {
        self.start.as_ref().map_or(1.0, |start| start.strength)
    }

    /// Whether a model that reads images to `edit`, or does not, can carry this out.
    ///
    /// # Errors
    /// A setting is out of its range, the parts are of different sizes, or an image to edit is missing or too much.
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
        // Rows, tokens and features of the prompts; rows and features of what is pooled.
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
                let problem = format!("does not go with noise of the shape {shape:?} and text of the shape {text:?}");
                return Err(Error::setting(part, problem));
            }
        }
        Ok(())
    }

    /// All that the network is told, as one batch of `K·B` rows, and the weights of the `K` predictions, which add up to 1.
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
/// This is no share of the steps to run.
pub(crate) fn check_strength(strength: f64) -> Result<()> {
    match strength > 0.0 && strength <= 1.0 {
        true => Ok(()),
        false => Err(Error::setting("strength", format!("{strength} is not above 0 and at most 1"))),
    }
}

/// The rows with these numbers, in this order; a number may be there more than once.
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

/// One number for each row, `[R]`, f32.
pub(super) fn numbers(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
