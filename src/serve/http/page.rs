//! The files of the page, embedded in the program.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use rust_embed::Embed;

use super::{
    App,
    errors::{Answer, Failure},
};

/// The files built by Vite; see `src/serve/web/build.sh`.
#[derive(Embed)]
#[folder = "src/serve/web/dist"]
struct Files;

/// Allows nothing from elsewhere, nothing inline, and no framing.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

/// The page at `/`, and each of its files by name.
pub(super) fn routes() -> Router<App> {
    let index = get(async |headers: HeaderMap| file("index.html", &headers));
    Files::iter().fold(Router::new().route("/", index), |router, name| {
        let path = format!("/{name}");
        router.route(&path, get(async move |headers: HeaderMap| file(&name, &headers)))
    })
}

fn file(name: &str, headers: &HeaderMap) -> Answer<Response> {
    let found = Files::get(name).ok_or_else(|| Failure::not_found("path", "not found"))?;
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let tag: String = found.metadata.sha256_hash()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{tag}\"");
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|seen| seen.as_bytes() == tag.as_bytes());
    let always = [
        (header::ETAG, tag.as_str()),
        (header::CACHE_CONTROL, "no-cache"), // revalidated each time, and sent only if it has changed
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if known {
        return Ok((StatusCode::NOT_MODIFIED, always).into_response());
    }
    Ok((always, [(header::CONTENT_TYPE, kind)], found.data.into_owned()).into_response())
}
