//! What a request is refused with: a status, kiln's own error, and how each dialect says it.

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

/// A request that was not done.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    status: StatusCode,
    /// The error as it serializes, with its text as `message`.
    error: Value,
    /// The text with its hint, in one line each.
    text: String,
    /// The parameter that it is about.
    parameter: Option<String>,
    /// A word for programs.
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

    /// A request that cannot be done as it stands.
    pub fn invalid(error: &Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", error)
    }

    /// A parameter that nobody knows.
    pub fn unknown_parameter(error: &Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unknown_parameter", error)
    }

    /// Something called `field` that is not there.
    pub fn not_found(field: &str, problem: &str) -> Self {
        Self::not_there(&Error::setting(field, problem))
    }

    /// The same, with a hint.
    pub fn not_there(error: &Error) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    /// The server is going down.
    pub fn stopping() -> Self {
        let error = Error::setting("server", "is about to stop and takes no more jobs");
        let again = Duration::from_secs(30);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", &error).retry_after(again)
    }

    /// Something of this machine, of which only its log tells more: whoever asks need not know its folders.
    pub fn broken(error: &Error) -> Self {
        tracing::error!("{error}");
        let error = Error::setting("server", "cannot do this now").hint("its log says why");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "broken", &error)
    }

    /// A thing called `field` that is missing.
    pub fn missing(field: &str, missing: Missing) -> Self {
        match missing {
            Missing::Unknown => Self::not_found(field, "is not there"),
            Missing::Expired => {
                let error = Error::setting(field, "was there, and has been removed to make room");
                Self::new(StatusCode::GONE, "expired", &error)
            }
            Missing::Broken(error) => Self::broken(&error),
        }
    }

    /// A job that failed, for a caller who waited for it.
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

    /// When it may be worth trying again: in whole seconds, at least one.
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait.as_secs_f64().ceil().max(1.0) as u64), ..self }
    }

    /// Something has changed since the caller saw it: the error holds it as `current`.
    pub fn changed(error: &Error, current: &impl Serialize) -> Self {
        let mut failure = Self::new(StatusCode::CONFLICT, "changed", error);
        failure.error["current"] = serde_json::to_value(current).unwrap_or_default();
        failure
    }

    /// What is wrong, with its hint.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// For the count of rejections.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The answer in this dialect.
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
            // A browser asks for a name and a key, and sends them with images and event streams as well.
            let challenge = HeaderValue::from_static("Basic realm=\"kiln\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// The text of an event of a stream that fails half-way.
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
                let error = busy("is full").hint("try again after as many seconds as `Retry-After` says");
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", &error).retry_after(retry_after)
            }
            Refusal::ShareFull { retry_after } => {
                let error = busy("holds as many jobs of this key as one key may have waiting")
                    .hint("wait for one of them, or cancel one");
                Self::new(StatusCode::TOO_MANY_REQUESTS, "share_full", &error).retry_after(retry_after)
            }
            Refusal::Stopping => Self::stopping(),
            Refusal::Broken(error) => Self::broken(&error),
        }
    }
}

/// Whose conventions an answer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/kiln/v1`, and everything that is in no other.
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

/// Says every refusal, whichever layer it came from, in the dialect of its path.
pub(super) async fn speak(request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri());
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) => {
            let mut answer = failure.answer(dialect);
            // What layers between have added stays.
            for (name, value) in response.headers() {
                if name != header::CONTENT_LENGTH {
                    answer.headers_mut().entry(name).or_insert(value.clone());
                }
            }
            answer.extensions_mut().insert(failure);
            answer
        }
        // A refusal of the library that routes requests, in its own words.
        None if response.status().is_client_error() || response.status().is_server_error() => {
            let status = response.status();
            let error =
                Error::setting("request", status.canonical_reason().unwrap_or("cannot be understood").to_lowercase());
            Failure::new(status, "refused", &error).answer(dialect)
        }
        None => response,
    }
}
