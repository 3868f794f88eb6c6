//! Lists of models, samplers and the like, as in AUTOMATIC1111.

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    super::{App, auth::Caller, blocking, errors::Answer},
    names, session,
};

/// List the models
#[utoipa::path(get, path = "/sdapi/v1/sd-models", tag = "automatic1111",
    responses((status = 200, description = "`title` and `model_name` of each", body = Vec<Object>)))]
pub(in super::super) async fn models(State(app): State<App>) -> Json<Vec<Value>> {
    let entry = |name: String| json!({"title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null});
    Json(app.service.models().into_iter().map(|model| entry(model.name)).collect())
}

/// List the samplers of your model
#[utoipa::path(get, path = "/sdapi/v1/samplers", tag = "automatic1111",
    responses((status = 200, description = "`name` of each", body = Vec<Object>)))]
pub(in super::super) async fn samplers(State(app): State<App>, caller: Caller) -> Answer<Json<Vec<Value>>> {
    let model = session::model(&app, &caller)?;
    let names = names::of_model(&model.schedulers).into_iter();
    Ok(Json(names.map(|name| json!({"name": name, "aliases": [], "options": {}})).collect()))
}

/// List the noise schedules that samplers of your model can use instead of their own
#[utoipa::path(get, path = "/sdapi/v1/schedulers", tag = "automatic1111",
    responses((status = 200, description = "`name` and `label` of each", body = Vec<Object>)))]
pub(in super::super) async fn schedulers(State(app): State<App>, caller: Caller) -> Answer<Json<Vec<Value>>> {
    let model = session::model(&app, &caller)?;
    let karras = model.schedulers.iter().any(|name| name == "dpm_solver_karras").then_some(("karras", "Karras"));
    let entry = |(name, label)| json!({"name": name, "label": label, "aliases": null, "default_rho": -1.0, "need_inner_model": false});
    Ok(Json([("automatic", "Automatic")].into_iter().chain(karras).map(entry).collect()))
}

/// List the upscalers: none
#[utoipa::path(get, path = "/sdapi/v1/upscalers", tag = "automatic1111",
    responses((status = 200, description = "One called `None`", body = Vec<Object>)))]
pub(in super::super) async fn upscalers() -> Json<Vec<Value>> {
    Json(vec![json!({"name": "None", "model_name": null, "model_path": null, "model_url": null, "scale": 1.0})])
}

/// List the latent upscale modes: none
#[utoipa::path(get, path = "/sdapi/v1/latent-upscale-modes", tag = "automatic1111",
    responses((status = 200, description = "An empty list", body = Vec<Object>)))]
pub(in super::super) async fn latent_upscale_modes() -> Json<Vec<Value>> {
    Json(Vec::new())
}

/// List the VAEs besides those of the models: none
#[utoipa::path(get, path = "/sdapi/v1/sd-vae", tag = "automatic1111",
    responses((status = 200, description = "An empty list", body = Vec<Object>)))]
pub(in super::super) async fn vaes() -> Json<Vec<Value>> {
    Json(Vec::new())
}

/// List the adapters
#[utoipa::path(get, path = "/sdapi/v1/loras", tag = "automatic1111",
    responses((status = 200, description = "`name` of each", body = Vec<Object>)))]
pub(in super::super) async fn loras(State(app): State<App>) -> Answer<Json<Vec<Value>>> {
    let loras = blocking(move || app.service.loras()).await?.into_iter();
    Ok(Json(
        loras.map(|lora| json!({"name": lora.name, "alias": lora.name, "path": lora.name, "metadata": {}})).collect(),
    ))
}
