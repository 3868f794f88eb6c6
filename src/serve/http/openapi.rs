//! The description of all routes, made from the handlers: `/openapi.json`.

use axum::{Router, http::header, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use utoipa::{
    OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{App, adapters, events, jobs, models, openai, operations, sdapi};

#[derive(OpenApi)]
#[openapi(
    info(title = "kiln serve", description = "Images from FLUX.1 and Stable Diffusion with any LoRA, as jobs.", license(name = "Apache-2.0")),
    tags(
        (name = "jobs", description = "kiln's own dialect: images as jobs"),
        (name = "models", description = "Base models"),
        (name = "loras", description = "Adapters"),
        (name = "openai", description = "As OpenAI's image API"),
        (name = "automatic1111", description = "As much of AUTOMATIC1111's API as its clients call"),
        (name = "operations", description = "For whoever runs the server"),
    ),
    security(("key" = []), ("name_and_key" = []))
)]
struct Description;

/// All routes, and what they are.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(jobs::submit, jobs::list))
        .routes(routes!(jobs::get, jobs::cancel))
        .routes(routes!(jobs::image))
        .routes(routes!(events::of_job))
        .routes(routes!(events::of_all))
        .routes(routes!(models::list))
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(adapters::list, adapters::upload))
        .routes(routes!(adapters::remove))
        .routes(routes!(operations::status))
        .routes(routes!(openai::models))
        .routes(routes!(openai::generations))
        .routes(routes!(openai::edits))
        .merge(sdapi::routes())
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::metrics))
}

/// The route of the description itself.
pub(super) fn route(description: utoipa::openapi::OpenApi) -> Router<App> {
    let text = finished(description).to_string();
    let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], text).into_response() };
    Router::new().route("/openapi.json", get(answer))
}

/// What the derived description lacks.
fn finished(mut description: utoipa::openapi::OpenApi) -> Value {
    let components = description.components.get_or_insert_default();
    for (name, scheme) in [("key", HttpAuthScheme::Bearer), ("name_and_key", HttpAuthScheme::Basic)] {
        components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
    }
    let mut description = serde_json::to_value(description).unwrap_or_else(|_| json!({}));
    // Handlers of several modules have one name; a method and a path are unique.
    for (path, item) in description["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let words = path.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
            operation["operationId"] = [method.as_str()].into_iter().chain(words).collect::<Vec<_>>().join("_").into();
        }
    }
    // Handlers add it where they know the address.
    let image = &mut description["components"]["schemas"]["Made"];
    image["properties"]["url"] = json!({"type": "string", "description": "Where it is to be had."});
    if let Some(required) = image["required"].as_array_mut() {
        required.push("url".into());
    }
    description
}
