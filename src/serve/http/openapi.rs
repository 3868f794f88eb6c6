//! The OpenAPI description of all routes, generated from the handlers: `/openapi.json`.

use axum::{Router, http::header, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use utoipa::{
    OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{App, adapters, datasets, events, jobs, models, openai, operations, runs, sdapi, starts, votes};

#[derive(OpenApi)]
#[openapi(
    info(title = "kiln serve", description = "Images from FLUX.1 and Stable Diffusion with any LoRA, as jobs.", license(name = "Apache-2.0")),
    tags(
        (name = "jobs", description = "kiln's own dialect: images as jobs"),
        (name = "models", description = "Base models"),
        (name = "loras", description = "Adapters"),
        (name = "votes", description = "Pairs of images, votes on them, and the leaderboard"),
        (name = "runs", description = "Training runs"),
        (name = "datasets", description = "Images with captions"),
        (name = "openai", description = "OpenAI's image API"),
        (name = "automatic1111", description = "The part of AUTOMATIC1111's API that clients use"),
        (name = "operations", description = "For operators of the server"),
    ),
    security(("key" = []), ("name_and_key" = []))
)]
struct Description;

/// All routes with their descriptions.
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
        .routes(routes!(votes::draw))
        .routes(routes!(votes::side))
        .routes(routes!(votes::vote))
        .routes(routes!(votes::leaderboard))
        .routes(routes!(votes::leaderboard_csv))
        .routes(routes!(votes::prompts))
        .routes(routes!(runs::list, starts::start))
        .routes(routes!(starts::list))
        .routes(routes!(runs::get))
        .routes(routes!(runs::metrics))
        .routes(routes!(runs::samples))
        .routes(routes!(runs::sample))
        .routes(routes!(runs::stop))
        .routes(routes!(runs::serve_checkpoint))
        .routes(routes!(datasets::list))
        .routes(routes!(datasets::get))
        .routes(routes!(datasets::images))
        .routes(routes!(datasets::thumbnail))
        .routes(routes!(datasets::caption, datasets::save))
        .routes(routes!(datasets::replace))
        .routes(routes!(openai::models))
        .routes(routes!(openai::generations))
        .routes(routes!(openai::edits))
        .merge(sdapi::routes())
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::metrics))
}

/// The route that serves the description.
pub(super) fn route(description: utoipa::openapi::OpenApi) -> Router<App> {
    let text = finished(description).to_string();
    let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], text).into_response() };
    Router::new().route("/openapi.json", get(answer))
}

/// Adds what the derived description lacks.
fn finished(mut description: utoipa::openapi::OpenApi) -> Value {
    let components = description.components.get_or_insert_default();
    for (name, scheme) in [("key", HttpAuthScheme::Bearer), ("name_and_key", HttpAuthScheme::Basic)] {
        components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
    }
    let mut description = serde_json::to_value(description).unwrap_or_else(|_| json!({}));
    // Handlers in different modules share names; method and path are unique.
    for (path, item) in description["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let words = path.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
            operation["operationId"] = [method.as_str()].into_iter().chain(words).collect::<Vec<_>>().join("_").into();
        }
    }
    // `url` is added by handlers.
    let image = &mut description["components"]["schemas"]["Made"];
    image["properties"]["url"] = json!({"type": "string", "description": "The URL of the image."});
    if let Some(required) = image["required"].as_array_mut() {
        required.push("url".into());
    }
    description
}
