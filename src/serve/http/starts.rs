//! Starting runs from the page.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, blocking, body,
    errors::{Answer, Failure},
    fields::Fields,
};
use crate::{
    error::Error,
    serve::starts::{NotStarted, Source, Startable, Started},
};

/// The largest request body here, in bytes.
const LONGEST: u64 = 256 << 10;

/// A run to start: the name of one of the server's configurations, or a configuration as text.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "it describes what is read parameter by parameter, so that a wrong one can be named")]
pub(super) struct Start {
    /// The name of a configuration.
    config: Option<String>,
    /// A configuration as TOML instead of `config`, if the server allows it.
    toml: Option<String>,
    /// The name of the run. Default: that in its configuration.
    name: Option<String>,
}

/// List the configurations whose runs can be started here, and the run that was started last
#[utoipa::path(get, path = "/kiln/v1/configs", tag = "runs",
    responses((status = 200, description = "All configurations", body = Startable)))]
pub(super) async fn list(State(app): State<App>) -> Answer<Json<Startable>> {
    blocking(move || app.page.starts.list()).await.map(Json)
}

/// Start a run in a process of its own, like `kiln train`
///
/// First a separate process checks the configuration, and whether its plan fits into the memory that served models leave free. The run
/// appears among the others as soon as its data is prepared, and can be stopped like them. One run at a time.
#[utoipa::path(post, path = "/kiln/v1/runs", tag = "runs", request_body = Start,
    responses((status = 202, description = "Its process has started", body = Started), (status = 400, description = "The configuration is invalid"),
        (status = 403, description = "The server does not allow it"), (status = 404, description = "There is no such configuration"),
        (status = 409, description = "Another run that was started here is still running"),
        (status = 422, description = "The check failed, perhaps for lack of memory")))]
pub(super) async fn start(State(app): State<App>, asked: Request) -> Answer<(StatusCode, Json<Started>)> {
    let mut fields = Fields::from_json(&body::read(&app, asked, LONGEST).await?)?;
    let (config, toml, name) = (fields.take("config")?, fields.take("toml")?, fields.take::<String>("name")?);
    fields.finish()?;
    let source = match (config, toml) {
        (Some(name), None) => Source::Named(name),
        (None, Some(text)) => Source::Text(text),
        _ => return Err(Error::setting("config", "or `toml` must be given, and not both").into()),
    };
    let started = blocking(move || app.page.starts.start(&source, name.as_deref())).await?;
    started.map(|started| (StatusCode::ACCEPTED, Json(started))).map_err(refused)
}

fn refused(why: NotStarted) -> Failure {
    match why {
        NotStarted::Off(setting) => {
            let error = Error::setting("config", "runs cannot be started this way on this server");
            Failure::new(
                StatusCode::FORBIDDEN,
                "off",
                &error.hint(format!("set `{setting}` in the server's configuration")),
            )
        }
        NotStarted::Unknown => Failure::not_found("config", "not found"),
        NotStarted::Invalid(error) => Failure::invalid(&error),
        NotStarted::Busy(what) => Failure::new(StatusCode::CONFLICT, "busy", &Error::setting("run", what)),
        NotStarted::Refused(said) => {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", &Error::setting("run", said))
        }
        NotStarted::Failed(error) => Failure::broken(&error),
    }
}
