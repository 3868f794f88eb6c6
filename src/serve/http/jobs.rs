//! kiln's own dialect: submitting, inspecting and cancelling jobs.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    auth::Caller,
    blocking, body,
    errors::{Answer, Failure},
    fields::{Asked, Fields},
    images::{self, Format, QUALITY},
    waiting,
};
use crate::{
    error::{Error, Result},
    serve::{
        Accepted, CancelOutcome,
        job::{FileBytes, Job, JobId, JobRequest, Status},
    },
};

/// The longest idempotency key in characters.
const LONGEST_KEY: usize = 255;

/// Parses the ID of a job in a path.
///
/// # Errors
/// It is not an ID.
pub(super) fn named(id: &str) -> Answer<JobId> {
    id.parse().map_err(|_| Failure::not_found("job", "not found"))
}

/// Takes the parameters that kiln's dialect and OpenAI's share.
///
/// # Errors
/// One is invalid.
pub(super) fn sampling(fields: &mut Fields, request: &mut JobRequest) -> Result<()> {
    request.negative_prompt = fields.take("negative_prompt")?;
    request.seed = fields.take("seed")?;
    request.steps = fields.take("steps")?;
    request.guidance = fields.take("guidance")?;
    request.image_guidance = fields.take("image_guidance")?;
    request.true_guidance = fields.take("true_guidance")?;
    request.scheduler = fields.take("scheduler")?;
    request.strength = fields.take("strength")?;
    Ok(())
}

/// Reads a job request in JSON.
fn request(body: &[u8]) -> Answer<JobRequest> {
    let mut fields = Fields::from_json(body)?;
    let mut file = |name| -> Result<Option<FileBytes>> {
        let text: Option<String> = fields.take(name)?;
        text.map(|text| images::from_text(name, &text).map(FileBytes)).transpose()
    };
    let (image, mask) = (file("image")?, file("mask")?);
    let mut request = JobRequest::new(fields.need::<String>("prompt")?);
    request.model = fields.take("model")?;
    request.count = fields.take("count")?.unwrap_or(request.count);
    request.width = fields.take("width")?;
    request.height = fields.take("height")?;
    request.loras = fields.take("loras")?.unwrap_or_default();
    request.previews = fields.take("previews")?.unwrap_or_default();
    sampling(&mut fields, &mut request)?;
    fields.finish()?;
    Ok(JobRequest { image, mask, ..request })
}

/// Submit a job
///
/// Without `image`, images are generated from `prompt`. With `image`, a model that edits edits it, and other models change it; with
/// `mask`, only where the mask is white. The same request under the same `Idempotency-Key` is the same job.
#[utoipa::path(post, path = "/kiln/v1/jobs", tag = "jobs", request_body = JobRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Up to 255 characters of your choice")),
    responses((status = 202, description = "Accepted: whatever happens to the server, the job will complete or fail", body = Accepted),
        (status = 400, description = "The request is invalid"), (status = 413, description = "The body is too large"),
        (status = 422, description = "The key was used for another request"),
        (status = 429, description = "The queue is full; `Retry-After` says when to try again")))]
pub(super) async fn submit(State(app): State<App>, caller: Caller, asked: Request) -> Answer<Response> {
    let key = idempotency_key(asked.headers())?;
    let request = request(&body::read(&app, asked, app.limits.body_bytes.0).await?)?;
    let accepted = blocking(move || app.service.submit(request, &caller.owner, key.as_deref())).await??;
    let address = format!("/kiln/v1/jobs/{}", accepted.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, address)], Json(accepted)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) => Ok(Some(key.into())),
        _ => Err(Error::setting("Idempotency-Key", "must be 1 to 255 ASCII characters").into()),
    }
}

/// A job as JSON, with the URLs of its images.
fn shown(job: &Job) -> Value {
    with_addresses(serde_json::to_value(job).unwrap_or_else(|_| json!({})), job.id)
}

/// Adds its URL to each of the `images` of a job.
pub(super) fn with_addresses(mut value: Value, id: JobId) -> Value {
    let images = value.get_mut("images").and_then(Value::as_array_mut);
    for (number, image) in images.into_iter().flatten().enumerate() {
        image["url"] = format!("/kiln/v1/jobs/{id}/images/{number}").into();
    }
    value
}

/// Selects jobs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Maximum number of jobs, at most 1000. Default 50.
    limit: Option<usize>,
    /// Only jobs with this status.
    status: Option<Status>,
}

/// List your jobs, the newest first
#[utoipa::path(get, path = "/kiln/v1/jobs", tag = "jobs", params(Which),
    responses((status = 200, description = "Jobs of the caller", body = Vec<Job>)))]
pub(super) async fn list(State(app): State<App>, caller: Caller, Asked(which): Asked<Which>) -> Json<Vec<Value>> {
    let jobs = app.service.jobs(&caller.owner);
    let wanted = jobs.iter().filter(|job| which.status.is_none_or(|status| status == job.status));
    Json(wanted.take(which.limit.unwrap_or(50).min(1000)).map(shown).collect())
}

/// Get a job
#[utoipa::path(get, path = "/kiln/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "Name of the job")),
    responses((status = 200, description = "The job", body = Job), (status = 404, description = "There is no such job"),
        (status = 410, description = "The job has expired and was removed")))]
pub(super) async fn get(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer<Json<Value>> {
    let job = app.service.job(named(&id)?, &caller.owner).map_err(|missing| Failure::missing("job", missing))?;
    Ok(Json(shown(&job)))
}

/// The outcome of a cancellation.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cancelled {
    #[schema(value_type = String, format = "uuid")]
    id: JobId,
    status: Status,
}

/// Cancel a job: at once if it is waiting, else within one denoising step
#[utoipa::path(delete, path = "/kiln/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "Name of the job")),
    responses((status = 200, description = "Cancelled, or will be within one step", body = Cancelled),
        (status = 404, description = "There is no such job"), (status = 409, description = "The job has already ended")))]
pub(super) async fn cancel(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer<Json<Cancelled>> {
    let id = named(&id)?;
    let outcome = blocking(move || app.service.cancel(id, &caller.owner)).await?;
    match outcome.map_err(|missing| Failure::missing("job", missing))? {
        CancelOutcome::Cancelled => Ok(Json(Cancelled { id, status: Status::Cancelled })),
        CancelOutcome::Finished(status) => {
            let error = Error::setting("job", format!("is already {}", status.word()));
            Err(Failure::new(StatusCode::CONFLICT, "finished", &error))
        }
    }
}

/// The format in which to send an image.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Sent {
    /// `png`, `jpeg` or `webp`. Default `png`.
    #[serde(default)]
    #[param(inline)]
    format: Format,
    /// Quality of a JPEG, from 1 to 100. Default 90.
    quality: Option<u8>,
}

/// Get an image of a completed job
#[utoipa::path(get, path = "/kiln/v1/jobs/{id}/images/{number}", tag = "jobs",
    params(("id" = String, Path, description = "Name of the job"), ("number" = usize, Path, description = "Number of the image, from 0"), Sent),
    responses((status = 200, description = "The image", content_type = "image/png", body = Vec<u8>),
        (status = 404, description = "There is no such job or image"), (status = 410, description = "The image has expired and was removed")))]
pub(super) async fn image(
    State(app): State<App>,
    caller: Caller,
    Path((id, number)): Path<(String, String)>,
    Asked(Sent { format, quality }): Asked<Sent>,
) -> Answer<Response> {
    let id = named(&id)?;
    let number = number.parse().map_err(|_| Failure::not_found("image", "not found"))?;
    let quality = quality.unwrap_or(QUALITY);
    let bytes = blocking(move || waiting::file(&app, id, &caller.owner, number, format, quality)).await??;
    let kept = "private, max-age=31536000, immutable"; // a job's images never change
    Ok(([(header::CONTENT_TYPE, format.content_type()), (header::CACHE_CONTROL, kept)], bytes).into_response())
}
