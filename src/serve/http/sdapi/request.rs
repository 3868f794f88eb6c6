//! Requests in AUTOMATIC1111's format.

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    super::{
        App,
        auth::Caller,
        errors::{Answer, Failure},
        fields::Fields,
        images,
    },
    names, prompt, session,
};
use crate::{
    error::{Error, Result},
    serve::{
        ModelInfo,
        job::{FileBytes, JobRequest},
    },
};

/// A job, and what goes into its response.
#[derive(Debug)]
pub(super) struct Wanted {
    pub request: JobRequest,
    /// Whether to include images in the response.
    pub sends: bool,
    /// The names of parameters that were not used.
    pub ignored: Vec<String>,
}

/// The parameters that kiln uses. Others are listed in `info.ignored` unless they have no effect.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read parameter by parameter, so that a wrong one can be named")]
pub(in super::super) struct FromText {
    /// The prompt; `<lora:NAME:SCALE>` applies an adapter.
    prompt: Option<String>,
    negative_prompt: Option<String>,
    /// The seed; -1 (default) for a random one.
    seed: Option<i64>,
    /// Number of denoising steps. Default: the model's.
    steps: Option<usize>,
    /// Guidance scale; for FLUX.1 the distilled one, unless `distilled_cfg_scale` is given. Default: the model's.
    cfg_scale: Option<f64>,
    /// Distilled guidance scale of FLUX.1; `cfg_scale` is then the scale for the negative prompt, where 1 turns it off.
    distilled_cfg_scale: Option<f64>,
    /// Width in pixels. Default: the model's.
    width: Option<usize>,
    /// Height in pixels. Default: the model's.
    height: Option<usize>,
    /// Images per iteration; times `n_iter` at most 10. Default 1.
    batch_size: Option<usize>,
    /// Number of iterations. Default 1.
    n_iter: Option<usize>,
    /// The sampler. Default: the model's.
    sampler_name: Option<String>,
    /// The old name of `sampler_name`.
    sampler_index: Option<String>,
    /// `Automatic`, or `Karras` with the sampler `DPM++ 2M`.
    scheduler: Option<String>,
    /// Settings for this request; kiln uses `sd_model_checkpoint`, the model.
    #[schema(value_type = Option<Object>)]
    override_settings: Option<Value>,
    /// Whether to include images in the response. Default true.
    send_images: Option<bool>,
}

/// The same with an image to change.
#[derive(ToSchema)]
#[expect(dead_code, reason = "as FromText")]
pub(in super::super) struct FromImage {
    #[serde(flatten)]
    text: FromText,
    /// One image in base64, or as a data URL. Other URLs are never fetched.
    init_images: Vec<String>,
    /// Denoising strength: the share of the steps to run. Default 0.75.
    denoising_strength: Option<f64>,
    /// The mask in base64: the image changes where it is white.
    mask: Option<String>,
    /// 1 swaps black and white in the mask.
    inpainting_mask_invert: Option<u8>,
    /// Image guidance scale, for models that edit.
    image_cfg_scale: Option<f64>,
}

/// Reads a request to generate images from a prompt.
pub(super) fn from_text(app: &App, caller: &Caller, mut fields: Fields) -> Answer<Wanted> {
    let (wanted, _) = common(app, caller, &mut fields)?;
    Ok(with_rest(wanted, fields))
}

/// Reads a request to change an image.
pub(super) fn from_image(app: &App, caller: &Caller, mut fields: Fields) -> Answer<Wanted> {
    let (mut wanted, model) = common(app, caller, &mut fields)?;
    let originals: Vec<String> = fields.take("init_images")?.unwrap_or_default();
    let [original] = originals.as_slice() else {
        return Err(Error::setting("init_images", format!("must be one image, not {}", originals.len())).into());
    };
    wanted.request.image = Some(FileBytes(images::from_text("init_images", original)?));
    let strength: Option<f64> = fields.take("denoising_strength")?;
    let guidance: Option<f64> = fields.take("image_cfg_scale")?;
    match model.edits {
        true => wanted.request.image_guidance = guidance,
        false => wanted.request.strength = Some(strength.unwrap_or(0.75)),
    }
    let of_no_use = if model.edits { ("denoising_strength", strength) } else { ("image_cfg_scale", guidance) };
    wanted.ignored.extend(of_no_use.1.map(|_| of_no_use.0.to_string()));
    let inverts = fields.take::<u8>("inpainting_mask_invert")?.is_some_and(|inverts| inverts > 0);
    if let Some(mask) = fields.take::<String>("mask")?.filter(|mask| !mask.is_empty()) {
        let bytes = images::from_text("mask", &mask)?;
        let bytes = if inverts { images::inverted("mask", &bytes, app.limits.pixels)? } else { bytes };
        wanted.request.mask = Some(FileBytes(bytes));
    }
    Ok(with_rest(wanted, fields))
}

fn with_rest(mut wanted: Wanted, fields: Fields) -> Wanted {
    wanted.ignored.extend(fields.ignored());
    wanted.ignored.sort();
    wanted
}

fn common(app: &App, caller: &Caller, fields: &mut Fields) -> Answer<(Wanted, ModelInfo)> {
    let (text, loras) = prompt::split(&fields.take::<String>("prompt")?.unwrap_or_default())?;
    let mut ignored = Vec::new();
    // `progress` shows previews.
    let mut request = JobRequest { loras, previews: true, ..JobRequest::new(text) };
    let model = model(app, caller, fields, &mut ignored)?;
    request.model = Some(model.name.clone());
    request.negative_prompt = fields.take::<String>("negative_prompt")?.filter(|text| !text.is_empty());
    request.seed = fields.take::<i64>("seed")?.and_then(|seed| u64::try_from(seed).ok());
    request.steps = fields.take("steps")?;
    request.width = fields.take("width")?;
    request.height = fields.take("height")?;
    guidance(fields, &mut request, &model)?;
    let (batch, rounds) = (fields.take("batch_size")?.unwrap_or(1), fields.take("n_iter")?.unwrap_or(1usize));
    request.count = rounds.saturating_mul(batch);
    sampler(fields, &mut request, &model, &mut ignored)?;
    let sends = fields.take("send_images")?.unwrap_or(true);
    Ok((Wanted { request, sends, ignored }, model))
}

/// The model in `override_settings`, or the one chosen as an option, or the default one.
fn model(app: &App, caller: &Caller, fields: &mut Fields, ignored: &mut Vec<String>) -> Answer<ModelInfo> {
    const KEY: &str = "sd_model_checkpoint";
    let mut settings: Map<String, Value> = fields.take("override_settings")?.unwrap_or_default();
    let named = settings.remove(KEY).and_then(|name| name.as_str().map(String::from)).filter(|name| !name.is_empty());
    ignored.extend(settings.keys().map(|name| format!("override_settings.{name}")));
    match named {
        None => session::model(app, caller),
        Some(name) => session::find(app, &name).ok_or_else(|| Failure::not_found(KEY, "is not served here")),
    }
}

fn guidance(fields: &mut Fields, request: &mut JobRequest, model: &ModelInfo) -> Result<()> {
    let (scale, distilled): (Option<f64>, Option<f64>) =
        (fields.take("cfg_scale")?, fields.take("distilled_cfg_scale")?);
    match (model.defaults.true_guidance, distilled) {
        (Some(_), Some(distilled)) => {
            request.guidance = Some(distilled);
            if scale.is_some_and(|scale| scale != 1.0) {
                request.true_guidance = scale;
                request.negative_prompt.get_or_insert_default();
            } else {
                request.negative_prompt = None; // it has no effect at a scale of 1
            }
        }
        _ => request.guidance = scale,
    }
    Ok(())
}

fn sampler(fields: &mut Fields, request: &mut JobRequest, model: &ModelInfo, ignored: &mut Vec<String>) -> Answer<()> {
    let (name, old) = (fields.take::<String>("sampler_name")?, fields.take::<String>("sampler_index")?);
    let name = name.or(old).filter(|name| !name.is_empty());
    let levels = fields.take::<String>("scheduler")?.unwrap_or_default();
    let known = match name.as_deref().map(names::named) {
        Some(None) => return Err(Failure::not_found("sampler_name", "is not a known sampler")),
        known => known.flatten(),
    };
    if model.schedulers.is_empty() {
        // The model has a fixed sampler, Euler's method with its own noise schedule.
        let other = name.as_deref().is_some_and(|_| names::sampler(known) != names::sampler(None));
        ignored.extend(other.then(|| "sampler_name".into()));
        ignored.extend((names::with_levels(None, &levels) != Some(None)).then(|| "scheduler".into()));
        return Ok(());
    }
    request.scheduler = names::with_levels(known, &levels).unwrap_or_else(|| {
        ignored.push("scheduler".into());
        known
    });
    Ok(())
}
