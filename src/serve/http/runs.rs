//! Training runs: state, metrics, samples.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, blocking,
    errors::{Answer, Failure},
    fields::Asked,
};
use crate::{
    error::{Error, Result},
    serve::{
        LoraInfo,
        run::{RunDetail, RunState, RunSummary, SampleInfo},
        run_metrics::Curve,
    },
};

fn no_run() -> Failure {
    Failure::not_found("run", "not found")
}

/// List the runs in the configured folders, the most recently changed first
#[utoipa::path(get, path = "/kiln/v1/runs", tag = "runs",
    responses((status = 200, description = "All runs", body = Vec<RunSummary>)))]
pub(super) async fn list(State(app): State<App>) -> Answer<Json<Vec<RunSummary>>> {
    blocking(move || app.page.runs.list()).await.map(Json)
}

/// Get a run with its configuration, checkpoints and samples
#[utoipa::path(get, path = "/kiln/v1/runs/{name}", tag = "runs", params(("name" = String, Path, description = "Name of the run")),
    responses((status = 200, description = "The run", body = RunDetail), (status = 404, description = "There is no such run")))]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<RunDetail>> {
    let detail = blocking(move || app.page.runs.detail(&name)).await?.map_err(|e| Failure::broken(&e))?;
    detail.map(Json).ok_or_else(no_run)
}

/// Where to continue.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// The `next` of the previous response. Default: from the start.
    after: Option<String>,
}

/// Get the metrics that a run has recorded, or has recorded since
#[utoipa::path(get, path = "/kiln/v1/runs/{name}/metrics", tag = "runs", params(("name" = String, Path, description = "Name of the run"), After),
    responses((status = 200, description = "Records as in its file", body = Curve), (status = 404, description = "There is no such run")))]
pub(super) async fn metrics(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(After { after }): Asked<After>,
) -> Answer<Json<Curve>> {
    blocking(move || app.page.runs.metrics(&name, after.as_deref())).await?.map(Json).ok_or_else(no_run)
}

/// List the grids of samples of a run, the oldest first
#[utoipa::path(get, path = "/kiln/v1/runs/{name}/samples", tag = "runs", params(("name" = String, Path, description = "Name of the run")),
    responses((status = 200, description = "All grids", body = Vec<SampleInfo>), (status = 404, description = "There is no such run")))]
pub(super) async fn samples(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<Vec<SampleInfo>>> {
    let detail = blocking(move || app.page.runs.detail(&name)).await?.map_err(|e| Failure::broken(&e))?;
    detail.map(|detail| Json(detail.samples)).ok_or_else(no_run)
}

/// Get a grid of samples
#[utoipa::path(get, path = "/kiln/v1/runs/{name}/samples/{file}", tag = "runs",
    params(("name" = String, Path, description = "Name of the run"), ("file" = String, Path, description = "Name of the grid")),
    responses((status = 200, description = "The grid", content_type = "image/png", body = Vec<u8>), (status = 404, description = "There is no such run or grid")))]
pub(super) async fn sample(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    let read = blocking(move || {
        let path = app.page.runs.sample(&name, &file).ok_or_else(|| Failure::not_found("sample", "not found"))?;
        std::fs::read(&path).map_err(|e| Failure::broken(&Error::io(path, e)))
    });
    let bytes = read.await??;
    let tag = format!("\"{}\"", &blake3::hash(&bytes).to_hex()[..32]);
    Ok(tagged(&headers, tag, "image/png", bytes))
}

/// A file that a browser caches and revalidates each time; it is sent only if it has changed.
pub(super) fn tagged(headers: &HeaderMap, tag: String, kind: &'static str, bytes: Vec<u8>) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|seen| seen.as_bytes() == tag.as_bytes());
    let always = [(header::ETAG, tag), (header::CACHE_CONTROL, "private, no-cache".into())];
    match known {
        true => (StatusCode::NOT_MODIFIED, always).into_response(),
        false => (always, [(header::CONTENT_TYPE, kind)], bytes).into_response(),
    }
}

/// The state of a run that was asked to stop.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stopping {
    name: String,
    state: RunState,
}

/// Ask a run to stop after its current step, with a checkpoint
#[utoipa::path(post, path = "/kiln/v1/runs/{name}/stop", tag = "runs", params(("name" = String, Path, description = "Name of the run")),
    responses((status = 202, description = "The run was asked to stop", body = Stopping), (status = 404, description = "There is no such run"),
        (status = 409, description = "No process on this machine is training it")))]
pub(super) async fn stop(State(app): State<App>, Path(name): Path<String>) -> Answer<(StatusCode, Json<Stopping>)> {
    let asked = name.clone();
    let state = blocking(move || app.page.stop(&asked)).await?.ok_or_else(no_run)?;
    let state = state.map_err(|error| Failure::new(StatusCode::CONFLICT, "not_running", &error))?;
    Ok((StatusCode::ACCEPTED, Json(Stopping { name, state })))
}

/// Serve the adapter of a checkpoint, as if it had been uploaded
///
/// Its name is `RUN-step-N`.
#[utoipa::path(post, path = "/kiln/v1/runs/{name}/checkpoints/{step}/serve", tag = "runs",
    params(("name" = String, Path, description = "Name of the run"), ("step" = u64, Path, description = "Step of the checkpoint")),
    responses((status = 201, description = "The adapter can be used", body = LoraInfo), (status = 400, description = "It fits none of the models"),
        (status = 404, description = "There is no such checkpoint, or it has no adapter")))]
pub(super) async fn serve_checkpoint(
    State(app): State<App>,
    Path((name, step)): Path<(String, String)>,
) -> Answer<(StatusCode, Json<LoraInfo>)> {
    let served = blocking(move || {
        let missing = || Failure::not_found("checkpoint", "not found, or has no adapter");
        let step: u64 = step.parse().map_err(|_| missing())?;
        let path = app.page.runs.adapter(&name, step).ok_or_else(missing)?;
        let bytes = limited(&path, app.limits.upload_bytes.0)?;
        app.service.upload_lora(&format!("{}-step-{step}", as_name(&name)), &bytes).map_err(Failure::from)
    });
    Ok((StatusCode::CREATED, Json(served.await??)))
}

fn limited(path: &std::path::Path, limit: u64) -> Result<Vec<u8>> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > limit {
        return Err(Error::setting(
            "checkpoint",
            format!("has {bytes} bytes, more than the maximum of {limit} for adapters"),
        ));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// Converts the name of a folder to a valid adapter name.
fn as_name(folder: &str) -> String {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String = folder.chars().take(100).map(|letter| if fits(letter) { letter } else { '-' }).collect();
    name.trim_start_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_folder_can_name_an_adapter() {
        assert_eq!(as_name("quickstart"), "quickstart");
        assert_eq!(as_name(".my style/é"), "my-style--");
    }
}
