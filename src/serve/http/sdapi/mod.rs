//! The part of AUTOMATIC1111's API that Open WebUI, SillyTavern and the like use. Its clients send dozens of parameters; those that
//! kiln does not use are listed in `info.ignored` of the response.
//!
//! What is global there is per caller here: the selected model, the progress, and the jobs that `interrupt` reaches.

mod names;
mod prompt;
mod session;
mod request;
mod lists;

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::request::{FromImage, FromText, Wanted};
pub(super) use self::session::Automatic;
use super::{
    App,
    auth::Caller,
    body,
    errors::Answer,
    fields::Fields,
    images::{self, Format, QUALITY},
    waiting::{self, Held},
};
use crate::serve::job::Job;

/// The routes of this dialect.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(txt2img))
        .routes(routes!(img2img))
        .routes(routes!(session::interrupt))
        .routes(routes!(session::progress))
        .routes(routes!(session::options, session::set_options))
        .routes(routes!(lists::models))
        .routes(routes!(lists::samplers))
        .routes(routes!(lists::schedulers))
        .routes(routes!(lists::upscalers))
        .routes(routes!(lists::latent_upscale_modes))
        .routes(routes!(lists::vaes))
        .routes(routes!(lists::loras))
}

/// Generated images.
#[derive(Serialize, ToSchema)]
#[schema(as = AutomaticImages)]
pub(super) struct Images {
    /// PNG files in base64; none with `send_images` false.
    images: Vec<String>,
    /// The parameters that were used.
    #[schema(value_type = Object)]
    parameters: Value,
    /// JSON as text: prompts, seeds, size, and as `ignored` the parameters that were not used.
    info: String,
}

/// Generate images from a prompt, in which `<lora:NAME:SCALE>` applies adapters
#[utoipa::path(post, path = "/sdapi/v1/txt2img", tag = "automatic1111", request_body = FromText,
    responses((status = 200, description = "The images", body = Images), (status = 400, description = "A parameter does not fit"),
        (status = 429, description = "The queue is full")))]
pub(super) async fn txt2img(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Json<Images>> {
    let body = body::read(&app, asked, app.limits.body_bytes.0).await?;
    let wanted = request::from_text(&app, &caller, Fields::from_json(&body)?.leniently())?;
    make(&app, &caller, wanted).await
}

/// Change an image, or the part of it where a mask is white
#[utoipa::path(post, path = "/sdapi/v1/img2img", tag = "automatic1111", request_body = FromImage,
    responses((status = 200, description = "The images", body = Images), (status = 400, description = "A parameter does not fit"),
        (status = 429, description = "The queue is full")))]
pub(super) async fn img2img(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Json<Images>> {
    let body = body::read(&app, asked, app.limits.body_bytes.0).await?;
    let wanted = request::from_image(&app, &caller, Fields::from_json(&body)?.leniently())?;
    make(&app, &caller, wanted).await
}

async fn make(app: &App, caller: &Caller, wanted: Wanted) -> Answer<Json<Images>> {
    let Wanted { request, sends, ignored } = wanted;
    let mut held = Held::submit(app, request, &caller.owner).await?;
    let _shown = session::Shown::new(app, caller, held.id);
    let job = held.wait().await?;
    let files = match sends {
        true => waiting::files(app, &job, Format::Png, QUALITY).await?,
        false => Vec::new(),
    };
    let images = files.iter().map(|file| images::to_text(file)).collect();
    let parameters = parameters(&job);
    Ok(Json(Images { images, info: info(&job, &parameters, &ignored).to_string(), parameters }))
}

/// The parameters of a job in this dialect.
fn parameters(job: &Job) -> Value {
    let request = &job.request;
    json!({
        "prompt": request.prompt, "negative_prompt": request.negative_prompt.as_deref().unwrap_or(""), "seed": request.seed,
        "steps": request.steps, "cfg_scale": request.guidance, "width": request.width, "height": request.height,
        "sampler_name": names::sampler(request.scheduler), "batch_size": request.count, "n_iter": 1,
        "denoising_strength": request.strength,
    })
}

/// The `info` of a response.
fn info(job: &Job, parameters: &Value, ignored: &[String]) -> Value {
    let mut info = parameters.clone();
    let repeated = |value: &Value| vec![value.clone(); job.images.len()];
    info["all_prompts"] = repeated(&info["prompt"]).into();
    info["all_negative_prompts"] = repeated(&info["negative_prompt"]).into();
    info["all_seeds"] = job.images.iter().map(|image| image.seed).collect();
    info["sd_model_name"] = job.request.model.clone().into();
    info["infotexts"] = job.images.iter().map(|image| text(job, image.seed)).collect();
    info["loras"] = json!(job.request.loras);
    info["ignored"] = ignored.into();
    info["job"] = job.id.to_string().into();
    info
}

/// The generation parameters as text, as AUTOMATIC1111 writes them into PNG files.
fn text(job: &Job, seed: u64) -> String {
    let request = &job.request;
    let number = |number: Option<usize>| number.map_or(String::new(), |number| number.to_string());
    let negative = request.negative_prompt.as_ref().map_or(String::new(), |text| format!("\nNegative prompt: {text}"));
    let guidance = request.guidance.map_or(String::new(), |guidance| format!(", CFG scale: {guidance}"));
    format!(
        "{}{negative}\nSteps: {}, Sampler: {}{guidance}, Seed: {seed}, Size: {}x{}, Model: {}",
        request.prompt,
        number(request.steps),
        names::sampler(request.scheduler),
        number(request.width),
        number(request.height),
        request.model.as_deref().unwrap_or_default(),
    )
}

/// The key of a caller's session.
fn session_of(caller: &Caller) -> (String, IpAddr) {
    (caller.owner.clone(), caller.address)
}
