//! A model that is ready to work: request after request, of any prompts, sizes, seeds and adapters.
//!
//! A session owns the parts of a model, lends each of them for its stage, and lets go of what is not to stay:
//!
//! | stage | text encoders | denoiser | VAE |
//! |---|---|---|---|
//! | text | loaded, unless all prompts are known by their content | | |
//! | encode, denoise, decode | gone, unless they are kept | loaded once | loaded once |
//!
//! Opening one reads configurations and headers alone, so what can be said without weights is said before any are loaded.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, FloatDType, Tensor};
use image::RgbImage;

use super::{
    SamplingOptions,
    embeddings::Embeddings,
    generator::{Batch, Embedded, Generator},
    input,
    worn::Worn,
};
use crate::{
    data::Encoders,
    device,
    error::Result,
    families::{self, Family, ModelEncoders},
    hub,
    lending::Residence,
    limits::Limits,
    memory::{self, Level, Stage},
    nn::Adapters,
    pipelines::{Denoising, ImageSizes, OnStep, Outcome, Pipeline, Placement, request::join},
    stop,
    tokenizer::PromptIds,
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

/// One model on one device, for any number of requests, one after the other.
pub struct Session {
    pub(super) folder: PathBuf,
    pub(super) family: &'static dyn Family,
    pub(super) device: Device,
    pub(super) dtype: FloatDType,
    placement: Placement,
    /// Where it was chosen for the work.
    pub(super) level: Level,
    /// Whether a lower one may follow where the device has no memory left.
    pub(super) may_step_down: bool,
    keeps_text_encoders: bool,
    encoders: Option<ModelEncoders>,
    embeddings: Embeddings,
    /// What the text encoders wore when these were made.
    embedded_with: Adapters,
    /// With weights that stay in their files, until it is [loaded](Self::load).
    pub(super) pipeline: Box<dyn Pipeline>,
    is_loaded: bool,
    /// By images whose maker does not say.
    pub(super) worn: Worn,
    limits: Limits,
}

impl Session {
    /// Looks at a model, which is a folder or `org/name`, without loading any weights.
    ///
    /// # Errors
    /// The model cannot be used: a file is missing or broken, or parts do not fit each other.
    pub fn open(model: &str, device: &Device) -> Result<Self> {
        Self::open_for(None, model, device)
    }

    /// The same; `edits` says whether it must be a model that edits by instruction, or must not.
    ///
    /// # Errors
    /// As [`open`](Self::open), or it is of the other kind.
    pub(super) fn open_for(edits: Option<bool>, model: &str, device: &Device) -> Result<Self> {
        let folder = hub::resolve(model)?;
        let (family, dtype) = (families::of(&folder)?, device::dtype(device).into());
        if edits.is_some_and(|edits| edits != family.edits()) {
            return Err(family.other_purpose(&folder));
        }
        Ok(Self {
            pipeline: family.open(Residence::Streamed.into(), &folder, device, dtype)?,
            is_loaded: false,
            placement: Placement::default(),
            level: Level::None,
            may_step_down: false,
            keeps_text_encoders: false,
            encoders: None,
            embeddings: Embeddings::default(),
            embedded_with: Adapters::default(),
            worn: Worn::default(),
            limits: Limits::NONE,
            device: device.clone(),
            folder,
            family,
            dtype,
        })
    }

    /// The same with weights that lie where `placement` says while they are not used. Without it they stay on the device.
    pub fn placed(mut self, placement: Placement) -> Self {
        self.place(placement);
        self
    }

    /// Lets weights lie where `placement` says, from now on.
    pub(super) fn place(&mut self, placement: Placement) {
        if placement != self.placement {
            self.placement = placement;
            self.encoders = None;
            self.is_loaded = false;
        }
    }

    /// Lets weights lie, and work be divided, as a memory level says, from now on.
    pub(super) fn work_at(&mut self, level: Level) {
        self.level = level;
        self.place(level.into());
        self.limit(level.limits());
    }

    /// Does `work`. Where the device has no memory left for it and the level was chosen by itself, all weights are let go of, and
    /// the work is done again at the next level.
    ///
    /// # Errors
    /// Those of the work, or there is no memory at the lowest level either, or at the one that was named.
    pub(super) fn fitting<T>(&mut self, work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let device = self.device.clone();
        memory::fitting(&device, self, work, |session| {
            session.release()?;
            let lower = session.level.next().filter(|_| session.may_step_down);
            if let Some(lower) = lower {
                session.work_at(lower);
            }
            Ok(lower)
        })
    }

    /// Bytes of a value of the denoiser.
    pub(super) fn dtype_size(&self) -> u64 {
        DType::from(self.dtype).size() as u64
    }

    /// What makes images of prompts that are embedded.
    pub(super) fn generator(&self) -> Generator<'_> {
        Generator { pipeline: &*self.pipeline, family: self.family }
    }

    /// The same, but text encoders stay loaded once they are, for requests whose prompts differ.
    pub fn keeping_text_encoders(self) -> Self {
        Self { keeps_text_encoders: true, ..self }
    }

    /// The same with bounds on how much is computed at once, which change no result.
    pub fn within(mut self, limits: Limits) -> Self {
        self.limit(limits);
        self
    }

    /// Bounds how much is computed at once, from now on.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.pipeline.limit(limits);
    }

    /// The kind of model.
    pub fn family(&self) -> &'static dyn Family {
        self.family
    }

    /// The sizes of images that the model works at.
    pub fn sizes(&self) -> ImageSizes {
        self.pipeline.sizes()
    }

    /// Loads the denoiser and the VAE, if they are not.
    ///
    /// # Errors
    /// They cannot be read any more, or the process is asked to stop.
    pub fn load(&mut self) -> Result<()> {
        if !self.is_loaded {
            stop::check()?;
            let _stage = Stage::enter("load", &self.device);
            self.pipeline = self.family.open(self.placement, &self.folder, &self.device, self.dtype)?;
            self.pipeline.limit(self.limits);
            self.is_loaded = true;
        }
        Ok(())
    }

    /// Lets go of all weights, until they are needed again. Adapters and embeddings stay.
    ///
    /// # Errors
    /// The model's files are not what they were.
    pub fn release(&mut self) -> Result<()> {
        self.pipeline = self.family.open(Residence::Streamed.into(), &self.folder, &self.device, self.dtype)?;
        self.pipeline.limit(self.limits);
        self.is_loaded = self.placement == Residence::Streamed.into();
        if let Some(encoders) = &mut self.encoders {
            encoders.release();
        }
        memory::release(&self.device);
        Ok(())
    }

    /// The embeddings of prompts and of what to keep away from. Text encoders are loaded only for those that are not known yet.
    ///
    /// # Errors
    /// A prompt cannot be read, or the text encoders cannot be loaded.
    pub(super) fn embed(&mut self, prompts: &Prompts, options: &SamplingOptions, worn: &Worn) -> Result<Embedded> {
        if !worn.text.are(&self.embedded_with) {
            self.embeddings = Embeddings::default(); // of other text encoders
            self.embedded_with = worn.text.clone();
            self.encoders = self.encoders.take().map(|encoders| encoders.wearing(worn.text.clone()));
        }
        let encoders = match &mut self.encoders {
            Some(encoders) => encoders,
            none => {
                let encoders = ModelEncoders::open(&self.folder, &self.device, self.dtype)?.placed(self.placement);
                none.insert(encoders.wearing(worn.text.clone()))
            }
        };
        let negative = options.negative(self.family);
        let mut ids = match prompts {
            Prompts::Texts(texts) => {
                let all: BTreeSet<_> = texts.iter().map(String::as_str).chain(negative.map(|(text, _)| text)).collect();
                encoders.shortened(&all.iter().copied().collect::<Vec<_>>())?.say("prompts", all.len());
                texts.iter().map(|text| encoders.tokenize(text)).collect::<Result<Vec<_>>>()?
            }
            Prompts::Ids(_, ids) => ids.clone(),
        };
        let count = ids.len();
        ids.extend(negative.map(|(text, _)| encoders.tokenize(text)).transpose()?);
        if let Prompts::Ids(path, _) = prompts {
            input::check_ids(path, &ids[..count], &self.folder, ids.get(count))?;
        }
        let stage = (!self.embeddings.has(&ids)).then(|| Stage::enter("text", &self.device));
        let mut rows = self.embeddings.of(&ids, |ids| encoders.encode_prompt(ids))?;
        if !self.keeps_text_encoders {
            encoders.release_text();
        }
        drop(stage);
        let negative = negative.and_then(|(_, scale)| Some((rows.pop()?, scale)));
        Ok(Embedded { text: join(&rows), negative })
    }

    /// How many images of a size in latent pixels are made together where nobody says.
    ///
    /// # Errors
    /// As [`load`](Self::load): what is free is known only when the model is there.
    pub(super) fn pictures_that_fit(&mut self, size: (usize, usize), shown: &Embedded) -> Result<usize> {
        self.load()?;
        Ok(self.generator().pictures_that_fit(size, shown))
    }

    /// Raw latents of images of one size: the most likely ones.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn encode(&mut self, pictures: &[RgbImage]) -> Result<Tensor<4>> {
        self.load()?;
        let _stage = Stage::enter("encode", &self.device);
        Ok(self.pipeline.encode(pictures).mode())
    }

    /// Scaled latents of new images. `on_step` is called after every step and may cancel it.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`Pipeline::generate`].
    pub(super) fn denoise(
        &mut self,
        batch: &Batch,
        shown: &Embedded,
        options: &SamplingOptions,
        on_step: OnStep,
    ) -> Result<Outcome<Tensor<4>>> {
        self.load()?;
        let _stage = Stage::enter("denoise", &self.device);
        let request = self.generator().request(batch, shown, options, vec![self.worn.denoiser.clone()]);
        self.pipeline.generate_until(&request, &mut |step| {
            tracing::info!("denoising: {}/{}", step.number, step.of);
            on_step(step)
        })
    }

    /// Makes ready to denoise a batch, step by step.
    ///
    /// # Errors
    /// As [`denoise`](Self::denoise).
    pub(super) fn ready(
        &mut self,
        batch: &Batch,
        shown: &Embedded,
        options: &SamplingOptions,
        worn: &Worn,
    ) -> Result<Denoising> {
        self.load()?;
        self.pipeline.begin(&self.generator().request(batch, shown, options, vec![worn.denoiser.clone()]))
    }

    /// Takes images a step on, each from where it is, in one call of the denoiser: those of all these requests together.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`Pipeline::advance`].
    pub fn advance(&mut self, all: &mut [&mut Denoising]) -> Result<()> {
        self.load()?;
        self.pipeline.advance(all)
    }

    /// The images of scaled latents, `[B, C, h, w]`.
    ///
    /// # Errors
    /// As [`load`](Self::load), or an image is not finite.
    pub fn decode(&mut self, latents: Tensor<4>) -> Result<Vec<RgbImage>> {
        if self.placement.vae == Residence::Resident {
            self.load()?;
        }
        let _stage = Stage::enter("decode", &self.device);
        self.pipeline.decode(latents)
    }
}
