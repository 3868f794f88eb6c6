//! An open model that serves requests with any prompts, sizes, seeds and adapters.
//!
//! A session owns the parts of a model, lends each of them for its stage, and drops parts that need not stay:
//!
//! | stage | text encoders | denoiser | VAE |
//! |---|---|---|---|
//! | text | loaded, unless the embeddings of all prompts are known | | |
//! | encode, denoise, decode | dropped, unless they are kept | loaded once | loaded once |
//!
//! Opening a session reads only configurations and headers, so every check that needs no weights comes before any are loaded.

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

/// Prompts.
pub(super) enum Prompts<'a> {
    /// As text.
    Texts(&'a [String]),
    /// As token ids from a file.
    Ids(&'a Path, Vec<PromptIds>),
}

impl Prompts<'_> {
    /// The number of prompts.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(_, ids) => ids.len(),
        }
    }
}

/// A model on a device, for any number of requests, one after the other.
pub struct Session {
    pub(super) folder: PathBuf,
    pub(super) family: &'static dyn Family,
    pub(super) device: Device,
    pub(super) dtype: FloatDType,
    placement: Placement,
    /// The memory level, if it was chosen for the work.
    pub(super) level: Level,
    /// Whether the next level may follow if the device runs out of memory.
    pub(super) may_step_down: bool,
    keeps_text_encoders: bool,
    encoders: Option<ModelEncoders>,
    embeddings: Embeddings,
    /// The text encoders' adapters for these embeddings.
    embedded_with: Adapters,
    /// The pipeline; its weights stay in their files until it is [loaded](Self::load).
    pub(super) pipeline: Box<dyn Pipeline>,
    is_loaded: bool,
    /// The adapters of images without their own.
    pub(super) worn: Worn,
    limits: Limits,
}

impl Session {
    /// Opens a model, a folder or `org/name`, without loading weights.
    ///
    /// # Errors
    /// The model cannot be used: a file is missing or broken, or parts do not fit each other.
    pub fn open(model: &str, device: &Device) -> Result<Self> {
        Self::open_for(None, model, device)
    }

    /// The same for an editing model (`edits` true), or for one that is not.
    ///
    /// # Errors
    /// As [`open`](Self::open); or it is of the other kind.
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

    /// The same with unused weights where `placement` says. Without it they stay on the device.
    pub fn placed(mut self, placement: Placement) -> Self {
        self.place(placement);
        self
    }

    /// Moves unused weights to where `placement` says.
    pub(super) fn place(&mut self, placement: Placement) {
        if placement != self.placement {
            self.placement = placement;
            self.encoders = None;
            self.is_loaded = false;
        }
    }

    /// Sets the memory level: where unused weights are, and how work is divided.
    pub(super) fn work_at(&mut self, level: Level) {
        self.level = level;
        self.place(level.into());
        self.limit(level.limits());
    }

    /// Does `work`. If the device runs out of memory and the level was chosen automatically, all weights are dropped, and the work is
    /// repeated at the next level.
    ///
    /// # Errors
    /// Those of the work; or the device runs out of memory at the last level, or at the requested one.
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

    /// Bytes per value of the denoiser.
    pub(super) fn dtype_size(&self) -> u64 {
        DType::from(self.dtype).size() as u64
    }

    /// The generator for embedded prompts.
    pub(super) fn generator(&self) -> Generator<'_> {
        Generator { pipeline: &*self.pipeline, family: self.family }
    }

    /// The same with text encoders that stay loaded, for requests with different prompts.
    pub fn keeping_text_encoders(self) -> Self {
        Self { keeps_text_encoders: true, ..self }
    }

    /// The same with limits on how much is computed at once, which change no result.
    pub fn within(mut self, limits: Limits) -> Self {
        self.limit(limits);
        self
    }

    /// Limits how much is computed at once.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.pipeline.limit(limits);
    }

    /// The family of the model.
    pub fn family(&self) -> &'static dyn Family {
        self.family
    }

    /// The image sizes that the model supports.
    pub fn sizes(&self) -> ImageSizes {
        self.pipeline.sizes()
    }

    /// Loads the denoiser and the VAE, unless they are loaded.
    ///
    /// # Errors
    /// They can no longer be read, or the process is asked to stop.
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

    /// Drops all weights until they are needed again. Adapters and embeddings stay.
    ///
    /// # Errors
    /// The model's files have changed.
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

    /// The embeddings of prompts and negative prompt. Text encoders are loaded only for unknown ones.
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

    /// The default batch size for images of a size in latent pixels.
    ///
    /// # Errors
    /// As [`load`](Self::load): the free memory is known only when the model is loaded.
    pub(super) fn pictures_that_fit(&mut self, size: (usize, usize), shown: &Embedded) -> Result<usize> {
        self.load()?;
        Ok(self.generator().pictures_that_fit(size, shown))
    }

    /// Raw latents of images of one size: the mode of the VAE's posterior.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn encode(&mut self, pictures: &[RgbImage]) -> Result<Tensor<4>> {
        self.load()?;
        let _stage = Stage::enter("encode", &self.device);
        Ok(self.pipeline.encode(pictures).mode())
    }

    /// Scaled latents of new images. `on_step` is called after every step and may cancel the rest.
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

    /// Prepares a batch for step-by-step denoising.
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

    /// Advances all images of these requests by one step, each from its own, in one call of the denoiser.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`Pipeline::advance`].
    pub fn advance(&mut self, all: &mut [&mut Denoising]) -> Result<()> {
        self.load()?;
        self.pipeline.advance(all)
    }

    /// Decodes scaled latents `[B, C, h, w]` to images.
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
