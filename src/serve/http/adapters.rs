//! Adapters: those in the configured folders, and uploaded ones.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App, blocking, body,
    errors::{Answer, Failure},
    fields::Asked,
};
use crate::serve::LoraInfo;

/// List the adapters, sorted by name
#[utoipa::path(get, path = "/kiln/v1/loras", tag = "loras",
    responses((status = 200, description = "Adapters and the models that they fit", body = Vec<LoraInfo>)))]
pub(super) async fn list(State(app): State<App>) -> Answer<Json<Vec<LoraInfo>>> {
    blocking(move || app.service.loras()).await.map(Json)
}

/// The name of an adapter to upload.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Name {
    /// 1 to 128 letters, digits, `.`, `_` or `-`, not starting with a dot.
    name: String,
}

/// Upload an adapter: the bytes of a safetensors file
///
/// An adapter uploaded earlier under the same name is replaced.
#[utoipa::path(post, path = "/kiln/v1/loras", tag = "loras", params(Name),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A safetensors file"),
    responses((status = 201, description = "The adapter can be used", body = LoraInfo),
        (status = 400, description = "The file is not an adapter or fits no model, or the name is invalid"),
        (status = 413, description = "The file is too large")))]
pub(super) async fn upload(
    State(app): State<App>,
    Asked(Name { name }): Asked<Name>,
    request: Request,
) -> Answer<(StatusCode, Json<LoraInfo>)> {
    let bytes = body::read(&app, request, app.limits.upload_bytes.0).await?;
    let info = blocking(move || app.service.upload_lora(&name, &bytes)).await??;
    Ok((StatusCode::CREATED, Json(info)))
}

/// Remove an uploaded adapter
#[utoipa::path(delete, path = "/kiln/v1/loras/{name}", tag = "loras", params(("name" = String, Path, description = "Name of the adapter")),
    responses((status = 204, description = "Removed"), (status = 404, description = "There is no uploaded adapter of this name")))]
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Answer<StatusCode> {
    let removed = blocking(move || app.service.remove_lora(&name)).await?;
    removed.map(|()| StatusCode::NO_CONTENT).map_err(|missing| Failure::missing("lora", missing))
}
