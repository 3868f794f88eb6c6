//! Error responses: a status, kiln's own error, and its form in each dialect.

use std::time::Duration;

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::{Error, Subject},
    serve::{Missing, Refusal, job},
};

/// An error response.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    status: StatusCode,
    /// The serialized error, with its text as `message`.
    error: Value,
    /// The text and its hint, on one line each.
    text: String,
    /// The parameter that caused it.
    parameter: Option<String>,
    /// A code for programs.
    code: &'static str,
    retry_after: Option<u64>,
}

/// The result of a handler.
pub(super) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, error: &Error) -> Self {
        let parameter = match &error.subject {
            Subject::Setting(field) => field.split(' ').next().map(String::from),
            _ => None,
        };
        let mut json = serde_json::to_value(error).unwrap_or_else(|_| json!({}));
        json["message"] = error.message().into();
        json["code"] = code.into();
        Self { status, error: json, text: error.to_string(), parameter, code, retry_after: None }
    }

    /// The request is invalid.
    pub fn invalid(error: &Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", error)
    }

    /// A parameter is unknown.
    pub fn unknown_parameter(error: &Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unknown_parameter", error)
    }

    /// The thing named `field` does not exist.
    pub fn not_found(field: &str, problem: &str) -> Self {
        Self::not_there(&Error::setting(field, problem))
    }

    /// The same, with a hint.
    pub fn not_there(error: &Error) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    /// The server is stopping.
    pub fn stopping() -> Self {
        let error = Error::setting("server", "is stopping and accepts no more jobs");
        let again = Duration::from_secs(30);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", &error).retry_after(again)
    }

    /// Something on this machine failed. Details go only to its log: callers need not know its folders.
    pub fn broken(error: &Error) -> Self {
        tracing::error!("{error}");
        let error = Error::setting("server", "cannot do this now").hint("the server's log has the details");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "broken", &error)
    }

    /// The thing named `field` is missing.
    pub fn missing(field: &str, missing: Missing) -> Self {
        match missing {
            Missing::Unknown => Self::not_found(field, "not found"),
            Missing::Expired => {
                let error = Error::setting(field, "has expired and was removed");
                Self::new(StatusCode::GONE, "expired", &error)
            }
            Missing::Broken(error) => Self::broken(&error),
        }
    }

    /// A job failed, for a caller who waited for it.
    pub fn of_job(failure: &job::Failure) -> Self {
        let hint = failure.hint.as_ref().map_or(String::new(), |hint| format!("\nhint: {hint}"));
        let mut error = serde_json::to_value(failure).unwrap_or_else(|_| json!({}));
        error["code"] = "job_failed".into();
        let parameter = failure.subject.get("setting").and_then(Value::as_str).map(String::from);
        let text = format!("{}{hint}", failure.message);
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, error, text, parameter, code: "job_failed", retry_after: None }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        let mut error = self.error;
        error["code"] = code.into();
        Self { code, error, ..self }
    }

    /// Adds `Retry-After`, in whole seconds, at least one.
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait.as_secs_f64().ceil().max(1.0) as u64), ..self }
    }

    /// Something has changed since the caller saw it; the error has its current version as `current`.
    pub fn changed(error: &Error, current: &impl Serialize) -> Self {
        let mut failure = Self::new(StatusCode::CONFLICT, "changed", error);
        failure.error["current"] = serde_json::to_value(current).unwrap_or_default();
        failure
    }

    /// The problem with its hint.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The code, also used to count refusals.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The response in this dialect.
    fn answer(&self, dialect: Dialect) -> Response {
        let body = match dialect {
            Dialect::Native => json!({"error": self.error}),
            Dialect::OpenAi => {
                let kind = match self.status.as_u16() {
                    401 | 403 => "authentication_error",
                    429 => "rate_limit_error",
                    500.. => "server_error",
                    _ => "invalid_request_error",
                };
                json!({"error": {"message": self.text(), "type": kind, "param": self.parameter, "code": self.code}})
            }
            Dialect::Automatic => json!({"detail": self.text()}),
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Makes a browser ask for name and key, which it then also sends for images and event streams.
            let challenge = HeaderValue::from_static("Basic realm=\"kiln\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// The error as an event, for a stream that fails midway.
    pub fn event(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => json!({"type": "error", "error": {
                "message": self.text, "type": "server_error", "param": self.parameter, "code": self.code,
            }}),
            _ => json!({"error": self.error}),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::invalid(&error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let busy = |problem: &str| Error::setting("queue", problem);
        match refusal {
            Refusal::Invalid(error) => Self::invalid(&error),
            Refusal::Conflict(error) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "conflict", &error),
            Refusal::QueueFull { retry_after } => {
                let error = busy("is full").hint("try again after the number of seconds in `Retry-After`");
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", &error).retry_after(retry_after)
            }
            Refusal::ShareFull { retry_after } => {
                let error = busy("has as many waiting jobs of this key as one key may have")
                    .hint("wait for one of them, or cancel one");
                Self::new(StatusCode::TOO_MANY_REQUESTS, "share_full", &error).retry_after(retry_after)
            }
            Refusal::Stopping => Self::stopping(),
            Refusal::Broken(error) => Self::broken(&error),
        }
    }
}

/// The conventions that a response follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/kiln/v1`, and all paths outside the other dialects.
    Native,
    /// `/v1`: OpenAI's.
    OpenAi,
    /// `/sdapi/v1`: AUTOMATIC1111's.
    Automatic,
}

impl Dialect {
    pub fn of(uri: &Uri) -> Self {
        match uri.path() {
            path if path.starts_with("/v1/") => Self::OpenAi,
            path if path.starts_with("/sdapi/") => Self::Automatic,
            _ => Self::Native,
        }
    }
}

/// Converts every error response, from whichever layer, to the dialect of its path.
pub(super) async fn speak(request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri());
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) => {
            let mut answer = failure.answer(dialect);
            // Headers added by layers in between are kept.
            for (name, value) in response.headers() {
                if name != header::CONTENT_LENGTH {
                    answer.headers_mut().entry(name).or_insert(value.clone());
                }
            }
            answer.extensions_mut().insert(failure);
            answer
        }
        // An error response of the routing library.
        None if response.status().is_client_error() || response.status().is_server_error() => {
            let status = response.status();
            let error =
                Error::setting("request", status.canonical_reason().unwrap_or("cannot be understood").to_lowercase());
            Failure::new(status, "refused", &error).answer(dialect)
        }
        None => response,
    }
}
