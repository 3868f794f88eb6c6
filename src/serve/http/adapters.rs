//! Adapters: those of the configured folders, and those that are sent here.

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

/// The adapters, in the order of their names
#[utoipa::path(get, path = "/kiln/v1/loras", tag = "loras",
    responses((status = 200, description = "Adapters and the models that they fit", body = Vec<LoraInfo>)))]
pub(super) async fn list(State(app): State<App>) -> Answer<Json<Vec<LoraInfo>>> {
    blocking(move || app.service.loras()).await.map(Json)
}

/// What an adapter is to be called.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Name {
    /// 1 to 128 letters, digits, `.`, `_` or `-`, and no dot first.
    name: String,
}

/// Send an adapter: the bytes of a safetensors file
///
/// One that was sent under the same name before is replaced.
#[utoipa::path(post, path = "/kiln/v1/loras", tag = "loras", params(Name),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A safetensors file"),
    responses((status = 201, description = "It can be asked for", body = LoraInfo),
        (status = 400, description = "It is no adapter, fits no model, or the name cannot be one"),
        (status = 413, description = "It is too large")))]
pub(super) async fn upload(
    State(app): State<App>,
    Asked(Name { name }): Asked<Name>,
    request: Request,
) -> Answer<(StatusCode, Json<LoraInfo>)> {
    let bytes = body::read(&app, request, app.limits.upload_bytes.0).await?;
    let info = blocking(move || app.service.upload_lora(&name, &bytes)).await??;
    Ok((StatusCode::CREATED, Json(info)))
}

/// Remove an adapter that was sent
#[utoipa::path(delete, path = "/kiln/v1/loras/{name}", tag = "loras", params(("name" = String, Path, description = "Name of the adapter")),
    responses((status = 204, description = "It is gone"), (status = 404, description = "There is none that was sent")))]
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Answer<StatusCode> {
    let removed = blocking(move || app.service.remove_lora(&name)).await?;
    removed.map(|()| StatusCode::NO_CONTENT).map_err(|missing| Failure::missing("lora", missing))
}
