//! Routes for operators: liveness, readiness, metrics and status.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{App, errors::Failure};
use crate::{error::Error, serve::StatusInfo};

/// Check that the process is alive
#[utoipa::path(get, path = "/healthz", tag = "operations", security(()),
    responses((status = 200, description = "Alive", content_type = "text/plain", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Check that jobs are accepted and run
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()),
    responses((status = 200, description = "Ready", content_type = "text/plain", body = String),
        (status = 503, description = "Not ready, with the reason")))]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let ready = match *app.stopping.borrow() {
        true => Err("is stopping".into()),
        false => app.service.ready(),
    };
    match ready {
        Ok(()) => "ready\n".into_response(),
        Err(why) => {
            let error = Error::setting("server", why);
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", &error).into_response()
        }
    }
}

/// Get metrics in the text format of Prometheus; nothing in them comes from prompts
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "Metrics", content_type = "application/openmetrics-text", body = String)))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    const END: &str = "# EOF\n"; // only once, at the end
    let text = app.service.metrics();
    let text = format!("{}{}", text.strip_suffix(END).unwrap_or(&text), app.requests.text());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// Get the status of the server
#[utoipa::path(get, path = "/kiln/v1/status", tag = "operations",
    responses((status = 200, description = "Queue, running jobs, memory", body = StatusInfo)))]
pub(super) async fn status(State(app): State<App>) -> Json<StatusInfo> {
    Json(app.service.status())
}

/// The response if no route has this path.
pub(super) async fn nothing_here(uri: Uri) -> Failure {
    let error = Error::setting("path", format!("{} not found", uri.path().chars().take(200).collect::<String>()));
    Failure::new(StatusCode::NOT_FOUND, "not_found", &error.hint("`/openapi.json` lists all paths"))
}

/// The response if a route has this path, but not this method.
pub(super) async fn wrong_method() -> Failure {
    let error = Error::setting("method", "is not supported by this path").hint("`/openapi.json` lists them");
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", &error)
}
