//! The served models, without their weights: descriptions, defaults, and checks of requests.

use std::{
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::Device;
use clap::ValueEnum;
use image::{
    RgbImage,
    imageops::{self, FilterType},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    config::{LimitsConfig, ModelEntry},
    info::{ModelDefaults, ModelInfo},
    job::{FileBytes, JobRequest},
    journal::Inputs,
    sanity::Flaw,
};
use crate::{
    data,
    error::{Error, Result, Subject},
    families,
    generation::{Images, SamplingOptions, Session, resize},
    hub,
    lora::Lora,
    notice::some_of,
    schedulers::SchedulerName,
    weights::read_json,
};

/// The longest prompt in bytes. Text encoders read a few hundred words.
const LONGEST_PROMPT: usize = 16 << 10;

/// The default denoising strength.
const STRENGTH: f64 = 0.6;

/// A model, whose weights stay in their files.
pub struct Model {
    pub entry: ModelEntry,
    info: ModelInfo,
    /// Checks requests. The engine has its own session, with weights.
    session: Mutex<Session>,
    /// Whether the engine has loaded its weights.
    pub is_loaded: AtomicBool,
}

/// All served models, the default one first.
pub struct Models(Vec<Model>);

impl Models {
    /// Reads the headers of all models.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(entries: &[ModelEntry]) -> Result<Self> {
        let open = |(number, entry): (usize, &ModelEntry)| {
            let session = Session::open(&entry.path, &Device::flex())?;
            let folder = hub::resolve(&entry.path)?;
            let (family, sizes) = (session.family(), session.sizes());
            let own = families::of(&folder)?.scheduler(&folder)?;
            let name = |name: SchedulerName| name.to_possible_value().map(|value| value.get_name().to_string());
            let (defaults, native) = (family.defaults(), usual_side(&folder, sizes.native));
            let info = ModelInfo {
                name: entry.name.clone(),
                family: family.name().into(),
                native_size: native,
                size_step: sizes.step,
                edits: family.edits(),
                loaded: false,
                default: number == 0,
                defaults: ModelDefaults {
                    steps: defaults.steps,
                    guidance: defaults.guidance,
                    true_guidance: defaults.true_guidance,
                    image_guidance: defaults.image_guidance,
                    scheduler: own.as_ref().and_then(|own| own.name).and_then(name),
                },
                schedulers: match own {
                    Some(_) => SchedulerName::value_variants().iter().copied().filter_map(name).collect(),
                    None => Vec::new(),
                },
            };
            Ok(Model { entry: entry.clone(), info, session: Mutex::new(session), is_loaded: AtomicBool::new(false) })
        };
        entries.iter().enumerate().map(open).collect::<Result<_>>().map(Self)
    }

    /// Descriptions of all models.
    pub fn infos(&self) -> Vec<ModelInfo> {
        let info = |model: &Model| ModelInfo { loaded: model.is_loaded.load(Ordering::Relaxed), ..model.info.clone() };
        self.0.iter().map(info).collect()
    }

    /// All models, in order.
    pub fn all(&self) -> &[Model] {
        &self.0
    }

    /// The number of the model of this name, or of the default one.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: Option<&str>) -> Result<usize> {
        let Some(name) = name else { return Ok(0) };
        self.0.iter().position(|model| model.entry.name == name).ok_or_else(|| {
            let names: Vec<_> = self.0.iter().map(|model| &model.entry.name).collect();
            let shown: String = name.chars().take(64).collect();
            Error::setting("model", format!("there is no model `{}`", shown.escape_debug()))
                .hint(format!("use {}", some_of(&names)))
        })
    }

    /// The names of the models that an adapter fits, and why it does not fit the first other one.
    pub fn wearers(&self, lora: &Lora) -> (Vec<String>, Option<Error>) {
        let (mut names, mut problem) = (Vec::new(), None);
        for model in &self.0 {
            match model.session().check_adapter(lora) {
                Ok(()) => names.push(model.entry.name.clone()),
                Err(e) => problem = problem.or(Some(e)),
            }
        }
        (names, problem)
    }

    /// Fills in everything that must be the same however often the request is started, and separates its files.
    ///
    /// # Errors
    /// The request is invalid; the error names the field.
    pub fn resolve(&self, mut request: JobRequest, limits: &LimitsConfig) -> Result<(JobRequest, Inputs)> {
        let model = &self.0[self.find(request.model.as_deref())?];
        let within = |field: &str, value: usize, most: usize| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::setting(field, format!("must be at least 1 and at most {most}, not {value}"))),
        };
        within("count", request.count, limits.images)?;
        let steps = request.steps.unwrap_or(model.info.defaults.steps);
        within("steps", steps, limits.steps)?;
        for (field, text) in [("prompt", Some(&request.prompt)), ("negative_prompt", request.negative_prompt.as_ref())]
        {
            if let Some(text) = text.filter(|text| text.len() > LONGEST_PROMPT) {
                let problem = format!("has {} bytes, more than the maximum of {LONGEST_PROMPT}", text.len());
                return Err(Error::setting(field, problem));
            }
        }
        if let Some(choice) = request.loras.iter().find(|choice| !choice.scale.is_finite()) {
            return Err(Error::setting("loras.scale", format!("{} is not a number", choice.scale)));
        }
        let inputs = (request.image.take(), request.mask.take());
        let image = inputs.0.as_ref().map(|file| decoded("image", file, limits)).transpose()?;
        let size = image.as_ref().map(|image| model.session().working_size(image.dimensions(), model.info.native_size));
        let native = model.info.native_size;
        let (width, height) = size.map_or((native, native), |(width, height)| (width as usize, height as usize));
        let (width, height) = (request.width.unwrap_or(width), request.height.unwrap_or(height));
        if (width as u64).saturating_mul(height as u64) > limits.pixels {
            let problem = format!("{width} × {height} exceeds the maximum of {} pixels", limits.pixels);
            return Err(Error::setting("width", problem));
        }
        request.model = Some(model.entry.name.clone());
        (request.width, request.height, request.steps) = (Some(width), Some(height), Some(steps));
        request.seed = Some(request.seed.unwrap_or_else(random_seed));
        self.images(&request, &inputs, limits)?;
        Ok((request, inputs))
    }

    /// The session's request for one image of a job that was [resolved](Self::resolve).
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn images(&self, request: &JobRequest, (image, mask): &Inputs, limits: &LimitsConfig) -> Result<Images> {
        let model = &self.0[self.find(request.model.as_deref())?];
        let edits = model.info.edits;
        for (field, is_wrong, problem) in [
            ("image", edits && image.is_none(), "is missing: this model edits images"),
            ("mask", mask.is_some() && image.is_none(), "requires `image`"),
            ("strength", request.strength.is_some() && image.is_none(), "requires `image`"),
            ("strength", request.strength.is_some() && edits, "is not supported by models that edit by instruction"),
        ] {
            if is_wrong {
                return Err(Error::setting(field, problem));
            }
        }
        let (width, height) = (request.width.unwrap_or_default(), request.height.unwrap_or_default());
        let size = (width as u32, height as u32);
        let image = image.as_ref().map(|file| decoded("image", file, limits)).transpose()?;
        let mask = mask.as_ref().map(|file| decoded("mask", file, limits)).transpose()?;
        if let (Some(image), Some(mask)) = (&image, &mask)
            && image.dimensions() != mask.dimensions()
        {
            let ((w, h), (width, height)) = (mask.dimensions(), image.dimensions());
            let problem = format!("the mask is {w} × {h} pixels, the image {width} × {height}");
            return Err(Error::setting("mask", problem)
                .hint("a mask must have the size of its image and be white where the image may change"));
        }
        let images = Images {
            prompts: vec![request.prompt.clone()],
            seeds: vec![request.seed.unwrap_or_default()],
            width,
            height,
            // An invalid size is reported before anything is resized.
            originals: match image {
                Some(image) => {
                    model.session().sizes().check(width, height)?;
                    vec![resize(image, size)]
                }
                None => Vec::new(),
            },
            strength: request.strength.unwrap_or(STRENGTH),
            mask: mask.map(|mask| imageops::resize(&imageops::grayscale(&mask), size.0, size.1, FilterType::Triangle)),
            sampling: SamplingOptions {
                scheduler: request.scheduler,
                steps: request.steps,
                guidance: request.guidance,
                image_guidance: request.image_guidance,
                negative_prompt: request.negative_prompt.clone(),
                true_guidance: request.true_guidance,
                scaled_condition: false,
            },
        };
        model.session().check_images(&images).map_err(by_field_of_request)?;
        Ok(images)
    }
}

impl Model {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The flaw of the input image, which then does not count as one of the result.
pub fn flaw_of_original(images: &Images) -> Option<Flaw> {
    images.originals.first().and_then(Flaw::of)
}

/// The side of the images that a model was trained for: its family's, or less if its VAE was trained on smaller ones.
fn usual_side(folder: &Path, native: usize) -> usize {
    #[derive(Deserialize)]
    struct Vae {
        sample_size: Option<usize>,
    }
    let vae = read_json::<Vae>(&folder.join("vae/config.json"));
    vae.ok().and_then(|vae| vae.sample_size).filter(|side| *side > 0).map_or(native, |side| side.min(native))
}

/// Rewrites an error about a session's images to name the field of the request.
fn by_field_of_request(mut error: Error) -> Error {
    if let Subject::Setting(field) = &mut error.subject {
        match field.as_str() {
            "originals" => *field = "image".into(),
            "prompts" => *field = "prompt".into(),
            _ => {}
        }
    }
    error
}

/// Decodes an image that came with a request; its size is checked first, from the header.
fn decoded(field: &str, FileBytes(bytes): &FileBytes, limits: &LimitsConfig) -> Result<RgbImage> {
    data::decode_picture(bytes, limits.pixels).map_err(|problem| Error::setting(field, problem))
}

/// A random seed of 32 bits, which every client can represent.
fn random_seed() -> u64 {
    let [.., a, b, c, d] = *Uuid::now_v7().as_bytes();
    u64::from(u32::from_le_bytes([a, b, c, d]))
}
