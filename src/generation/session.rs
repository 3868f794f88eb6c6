//! A model that is ready to work: loaded in stages, each of which gives back what it took.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::{input, preflight::Preflight};
use crate::{
    data::Encoders,
    device,
    error::{Error, Result},
    families::{Family, ModelEncoders},
    memory::Stage,
    models::text::PromptEmbeds,
    nn::Adapters,
    pipelines::{
        Pipeline, Request, Start,
        pipeline::{NOT_FINITE, WHY_NOT_FINITE},
        request::pick,
    },
    stop,
    tokenizer::PromptIds,
    weights::write_tensors,
};

/// What to show.
pub(super) enum Prompts<'a> {
    /// In words.
    Texts(&'a [String]),
    /// As tokens that were read from a file.
    Ids(&'a Path, Vec<PromptIds>),
}

impl Prompts<'_> {
    /// How many prompts there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(_, ids) => ids.len(),
        }
    }
}

/// Pictures that are made together.
pub(super) struct Batch {
    /// For each picture the number of its prompt and its seed.
    pub rows: Vec<(usize, u64)>,
    /// Where to start from, `[B, C, h, w]`.
    pub noise: Tensor<4>,
    /// Raw latents of the pictures to change or to edit, `[B, C, h, w]`.
    pub pictures: Option<Tensor<4>>,
    /// How much to change them, unless the model edits.
    pub strength: f64,
    /// Where to change them, `[B, 1, h, w]`.
    pub mask: Option<Tensor<4>>,
}

/// A pipeline with its adapters, and the embeddings of all prompts of a run.
pub(super) struct Session {
    pub pipeline: Box<dyn Pipeline>,
    family: &'static dyn Family,
    adapters: Adapters,
    /// One row for each prompt.
    text: PromptEmbeds,
    negative: Option<(PromptEmbeds, f64)>,
    steps: usize,
    guidance: f64,
    image_guidance: f64,
    device: Device,
}

impl Session {
    /// Embeds the prompts, then loads the model and looks whether the adapters fit: two stages.
    ///
    /// # Errors
    /// The model, a prompt or an adapter cannot be used.
    pub fn open(preflight: &Preflight, prompts: &Prompts, device: &Device) -> Result<Self> {
        let Preflight { folder, family, options, loras, .. } = preflight;
        let (family, dtype) = (*family, device::dtype(device).into());
        let (text, negative) = {
            let _stage = Stage::enter("text", device);
            let mut encoders = ModelEncoders::open(folder, device, dtype)?;
            let negative =
                options.negative(family).map(|(prompt, scale)| Ok::<_, Error>((encoders.tokenize(prompt)?, scale)));
            let negative = negative.transpose()?;
            if let Prompts::Texts(texts) = prompts {
                let all = texts.iter().map(String::as_str).chain(options.negative(family).map(|(prompt, _)| prompt));
                let all: BTreeSet<&str> = all.collect();
                encoders.shortened(&all.iter().copied().collect::<Vec<_>>())?.say("prompts", all.len());
            }
            let ids = match prompts {
                Prompts::Texts(texts) => texts.iter().map(|text| encoders.tokenize(text)).collect::<Result<_>>()?,
                Prompts::Ids(path, ids) => {
                    input::check_ids(path, ids, encoders.text()?, negative.as_ref().map(|(ids, _)| ids))?;
                    ids.clone()
                }
            };
            let text = encoders.encode_prompts(&ids)?;
            let negative = negative.map(|(ids, scale)| Ok::<_, Error>((encoders.encode_prompts(&[ids])?, scale)));
            (text, negative.transpose()?)
        };
        stop::check()?;
        let pipeline = {
            let _stage = Stage::enter("load", device);
            family.open(folder, &preflight.sampling(), device, dtype)?
        };
        let layers = pipeline.layers();
        let mut adapters = Adapters::default();
        for (lora, (path, strength)) in loras.iter().zip(&options.loras) {
            adapters = adapters.and(&lora.adapters_for(&layers, device, *strength).map_err(|e| e.at(path))?);
        }
        Ok(Self {
            pipeline,
            family,
            adapters,
            text,
            negative,
            steps: preflight.steps(),
            guidance: options.guidance(family),
            image_guidance: options.image_guidance(family),
            device: device.clone(),
        })
    }

    /// How many pictures of a size in latent pixels are made together where nobody says.
    pub fn pictures_that_fit(&self, size: (usize, usize)) -> usize {
        // With guidance each picture has a row with the prompt and one without, and an edit one without its original.
        let guided = usize::from(self.negative.is_some());
        let rows = 1 + guided + guided * usize::from(self.family.edits());
        self.pipeline.pictures_that_fit(size, self.text.prompt.dims()[1], rows)
    }

    /// Raw latents of pictures of one size: the most likely ones.
    pub fn encode(&self, pictures: &[RgbImage]) -> Tensor<4> {
        let _stage = Stage::enter("encode", &self.device);
        self.pipeline.encode(pictures).mode()
    }

    /// Scaled latents of new pictures. `on_step` is called after every step.
    pub fn make(&self, batch: &Batch, on_step: &mut dyn FnMut()) -> Result<Tensor<4>> {
        let _stage = Stage::enter("denoise", &self.device);
        let (prompts, seeds): (Vec<_>, Vec<_>) = batch.rows.iter().copied().unzip();
        let text = pick(&self.text, &prompts);
        let (original, start) = match (&batch.pictures, self.family.edits()) {
            (Some(raw), true) => (Some((raw.clone(), self.image_guidance)), None),
            (Some(raw), false) => {
                let latents = self.pipeline.vae().latent_scale().normalize(raw.clone());
                (None, Some(Start { latents, strength: batch.strength, mask: batch.mask.clone() }))
            }
            (None, _) => (None, None),
        };
        let request = Request {
            guidance: self.guidance,
            negative: self.negative.clone(),
            original,
            start,
            adapters: vec![self.adapters.clone()],
            ..Request::new(text, batch.noise.clone(), seeds, self.steps)
        };
        self.pipeline.generate(&request, &mut |step| {
            tracing::info!("denoising: {}/{}", step.number, step.of);
            on_step();
        })
    }

    /// Writes scaled latents to a file: `latents` `[B, C, h, w]`, or `[B, L, 4·C]` where the family packs them. All must be finite.
    pub fn write_latents(&self, latents: Tensor<4>, path: &Path) -> Result<()> {
        if !latents.clone().is_finite().all().into_scalar::<bool>() {
            return Err(Error::file(path, NOT_FINITE).hint(WHY_NOT_FINITE));
        }
        let latents = input::latents_data(latents, self.family.packs_latents());
        write_tensors(path, &BTreeMap::from([("latents".to_string(), latents)]), &BTreeMap::new())
    }

    /// The pictures of scaled latents.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Vec<RgbImage>> {
        let _stage = Stage::enter("decode", &self.device);
        self.pipeline.decode(latents)
    }
}
