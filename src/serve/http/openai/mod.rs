//! OpenAI's image API: generations, edits, and both as streams. kiln's own parameters are sent beside OpenAI's, as clients do with
//! `extra_body`.

mod request;
mod stream;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use self::request::{Edit, Generation, Sending, Wanted};
use super::{
    App,
    auth::Caller,
    body,
    errors::Answer,
    fields::Fields,
    images,
    waiting::{self, Held},
};
use crate::serve::job::Job;

/// A list of models.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModel)]
struct Model {
    id: String,
    /// `model`
    object: &'static str,
    /// Always 0 (unknown).
    created: u64,
    /// `kiln`
    owned_by: &'static str,
}

/// List the models
#[utoipa::path(get, path = "/v1/models", tag = "openai",
    responses((status = 200, description = "Models", body = ModelList)))]
pub(super) async fn models(State(app): State<App>) -> Json<ModelList> {
    let models = app.service.models().into_iter();
    let data = models.map(|model| Model { id: model.name, object: "model", created: 0, owned_by: "kiln" }).collect();
    Json(ModelList { object: "list", data })
}

/// Generated images.
#[derive(Serialize, ToSchema)]
pub(super) struct Images {
    /// When they were requested, in seconds since 1970.
    created: u64,
    data: Vec<Image>,
    /// `opaque`
    background: &'static str,
    #[schema(inline)]
    output_format: images::Format,
    /// Their size, such as `1024x1024`.
    size: String,
    /// The ID of the job that generated them.
    #[schema(value_type = String, format = "uuid")]
    job: String,
}

/// A generated image.
#[derive(Serialize, ToSchema)]
struct Image {
    /// The file in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// Its URL, which needs the same key.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The seed that reproduces it.
    seed: u64,
}

/// Generate images from a prompt
#[utoipa::path(post, path = "/v1/images/generations", tag = "openai", request_body = Generation,
    responses((status = 200, description = "The images; with `stream`, server-sent events `image_generation.*`", body = Images),
        (status = 400, description = "A parameter is unknown or does not fit"), (status = 404, description = "There is no such model"),
        (status = 429, description = "The queue is full")))]
pub(super) async fn generations(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Response> {
    let base = base(asked.headers());
    let body = body::read(&app, asked, app.limits.body_bytes.0).await?;
    let wanted = request::generation(&app, Fields::from_json(&body)?)?;
    make(&app, &caller, wanted, "image_generation", &base).await
}

/// Edit an image, or change the part of it where a mask is transparent
#[utoipa::path(post, path = "/v1/images/edits", tag = "openai", request_body(content = Edit, content_type = "multipart/form-data"),
    responses((status = 200, description = "The images; with `stream`, server-sent events `image_edit.*`", body = Images),
        (status = 400, description = "A parameter is unknown or does not fit"), (status = 404, description = "There is no such model"),
        (status = 429, description = "The queue is full")))]
pub(super) async fn edits(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Response> {
    let base = base(asked.headers());
    let form = body::form(&app, asked, app.limits.body_bytes.0).await?;
    let wanted = request::edit(&app, form)?;
    make(&app, &caller, wanted, "image_edit", &base).await
}

async fn make(app: &App, caller: &Caller, wanted: Wanted, kind: &'static str, base: &str) -> Answer<Response> {
    let Wanted { request, sending } = wanted;
    let mut held = Held::submit(app, request, &caller.owner).await?;
    if sending.stream {
        return stream::answer(app, held, kind, sending);
    }
    let job = held.wait().await?;
    Ok(Json(images(app, &job, &sending, base).await?).into_response())
}

async fn images(app: &App, job: &Job, sending: &Sending, base: &str) -> Answer<Images> {
    let Sending { format, quality, url, .. } = *sending;
    let seeds = job.images.iter().map(|image| image.seed);
    let data = if url {
        let address = |number| {
            format!("{base}/kiln/v1/jobs/{}/images/{number}?format={}&quality={quality}", job.id, format.word())
        };
        seeds.enumerate().map(|(number, seed)| Image { b64_json: None, url: Some(address(number)), seed }).collect()
    } else {
        let files = waiting::files(app, job, format, quality).await?;
        let files = files.iter().map(|file| images::to_text(file));
        files.zip(seeds).map(|(text, seed)| Image { b64_json: Some(text), url: None, seed }).collect()
    };
    let (background, created, size) = ("opaque", job.created as u64, size(job));
    Ok(Images { created, data, background, output_format: format, size, job: job.id.to_string() })
}

/// The size as OpenAI writes it: `1024x1024`.
fn size(job: &Job) -> String {
    let side = |side: Option<usize>| side.unwrap_or_default(); // jobs have both
    format!("{}x{}", side(job.request.width), side(job.request.height))
}

/// The URL under which this server was called, the prefix of image URLs.
fn base(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    format!("{scheme}://{}", text(header::HOST.as_str()).unwrap_or("localhost"))
}
