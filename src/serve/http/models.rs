//! Models: listing, loading and unloading.

use axum::{
    Json,
    extract::{Path, State},
};

use super::{
    App,
    errors::{Answer, Failure},
};
use crate::{error::Error, serve::ModelInfo};

/// List the models, the default one first
#[utoipa::path(get, path = "/kiln/v1/models", tag = "models",
    responses((status = 200, description = "Models with their defaults", body = Vec<ModelInfo>)))]
pub(super) async fn list(State(app): State<App>) -> Json<Vec<ModelInfo>> {
    Json(app.service.models())
}

/// Load a model ahead of its first job
#[utoipa::path(post, path = "/kiln/v1/models/{name}/load", tag = "models", params(("name" = String, Path, description = "Name of the model")),
    responses((status = 200, description = "Loaded", body = ModelInfo), (status = 404, description = "There is no such model")))]
pub(super) async fn load(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<ModelInfo>> {
    find(&app, &name)?;
    app.service.load(&name).await.map_err(|error: Error| Failure::broken(&error))?;
    find(&app, &name).map(Json)
}

/// Unload the weights of a model, once its running jobs have ended
#[utoipa::path(post, path = "/kiln/v1/models/{name}/unload", tag = "models", params(("name" = String, Path, description = "Name of the model")),
    responses((status = 200, description = "Unloaded", body = ModelInfo), (status = 404, description = "There is no such model")))]
pub(super) async fn unload(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<ModelInfo>> {
    find(&app, &name)?;
    app.service.unload(&name).await.map_err(|error: Error| Failure::broken(&error))?;
    find(&app, &name).map(Json)
}

fn find(app: &App, name: &str) -> Answer<ModelInfo> {
    let model = app.service.models().into_iter().find(|model| model.name == name);
    model.ok_or_else(|| Failure::not_found("model", "is not served here").with_code("model_not_found"))
}
