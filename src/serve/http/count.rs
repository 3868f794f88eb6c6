//! Counts requests by route and refusals by reason, for `/metrics` and the log. Neither contains anything that was sent.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::{App, errors::Failure};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// The metrics of requests.
pub(super) struct Requests {
    registry: Registry,
    answered: Family<Kind, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    refused: Family<Reason, Counter>,
}

impl Default for Requests {
    fn default() -> Self {
        let mut registry = Registry::default();
        let answered = Family::default();
        registry.register("kiln_http_requests", "Requests answered", answered.clone());
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let seconds = Family::new_with_constructor(histogram);
        registry.register("kiln_http_seconds", "Seconds until the response started", seconds.clone());
        let refused = Family::default();
        registry.register("kiln_http_refused", "Requests refused, by reason", refused.clone());
        Self { registry, answered, seconds, refused }
    }
}

impl Requests {
    /// The metrics in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        _ = encode(&mut text, &self.registry);
        text
    }
}

/// The method, or `other` for one that no route has: clients can invent methods.
fn known(method: &Method) -> &str {
    match method.as_str() {
        name @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS") => name,
        _ => "other",
    }
}

/// Counts a request, and logs it.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = known(request.method()).to_string();
    // The pattern, not the path: each job's ID would create a series.
    let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_string();
    let response = next.run(request).await;
    let (status, taken) = (response.status().as_u16(), began.elapsed());
    let reason = response.extensions().get::<Failure>().map(Failure::code);
    tracing::debug!(method, route, status, milliseconds = taken.as_millis() as u64, reason, "answered");
    app.requests.seconds.get_or_create(&Route { route: route.clone() }).observe(taken.as_secs_f64());
    app.requests.answered.get_or_create(&Kind { method, route, status }).inc();
    if let Some(reason) = reason {
        app.requests.refused.get_or_create(&Reason { reason: reason.into() }).inc();
    }
    response
}
