//! Server-sent events about jobs and runs.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event as Message, KeepAlive, Sse},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use utoipa::IntoParams;

use super::{
    App,
    auth::Caller,
    blocking,
    errors::{Answer, Failure},
    fields::Asked,
    jobs::{named, with_addresses},
};
use crate::serve::job::Numbered;

/// How many messages may wait for a slow listener.
const WAITING: usize = 32;

/// The interval of comments that keep proxies from closing a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A response that sends the messages of a channel.
pub(super) fn answer(messages: mpsc::Receiver<Message>) -> Response {
    let messages = ReceiverStream::new(messages).map(Ok::<_, Infallible>);
    let stream = Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // nginx would otherwise buffer the events.
    ([("x-accel-buffering", "no"), ("cache-control", "no-store")], stream).into_response()
}

/// How often runs are checked for listeners, so that a new point is on the page within a second.
const LOOK: Duration = Duration::from_millis(500);

/// A response that sends `messages` until they end, the listener is gone, or `until` completes.
fn passed_on(
    messages: impl Stream<Item = Message> + Send + 'static,
    until: impl Future<Output = ()> + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let (mut messages, mut until) = (std::pin::pin!(messages), std::pin::pin!(until));
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = sender.closed() => None,
                () = &mut until => None,
            };
            match message {
                Some(message) => {
                    if sender.send(message).await.is_err() {
                        break;
                    }
                }
                None => break,
            }
        }
    });
    answer(receiver)
}

/// A message with `event:` and `data:`.
pub(super) fn message(name: &str, data: &Value) -> Message {
    Message::default().event(name).data(data.to_string())
}

/// Where a client resumes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// The number of the last event received. The header `Last-Event-ID`, which browsers send automatically, takes precedence.
    after: Option<u64>,
}

fn data(numbered: &Numbered) -> Value {
    with_addresses(serde_json::to_value(&numbered.event).unwrap_or_else(|_| json!({})), numbered.job)
}

/// Stream the events of a job
///
/// Events `queued`, `started`, `progress`, `preview`, `completed`, `failed` and `cancelled`, numbered from 1. The stream ends with
/// one of the last three. After a disconnect it resumes after `Last-Event-ID`.
#[utoipa::path(get, path = "/kiln/v1/jobs/{id}/events", tag = "jobs", params(("id" = String, Path, description = "Name of the job"), After),
    responses((status = 200, description = "Events of the job", content_type = "text/event-stream", body = String),
        (status = 404, description = "There is no such job")))]
pub(super) async fn of_job(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Asked(After { after }): Asked<After>,
    headers: HeaderMap,
) -> Answer<Response> {
    let id = named(&id)?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = last.or(after).unwrap_or(0);
    let events = app.service.events(id, &caller.owner, after).map_err(|missing| Failure::missing("job", missing))?;
    let messages =
        events.map(|numbered| message(numbered.event.name(), &data(&numbered)).id(numbered.number.to_string()));
    // Continues while the server is stopping, to the end of the job if possible; otherwise the service ends it.
    Ok(passed_on(messages, std::future::pending()))
}

/// Stream the events of all your jobs, and of runs
///
/// The same events, from now on, each with its job's ID as `job`, and events `run` about runs that change.
#[utoipa::path(get, path = "/kiln/v1/events", tag = "jobs",
    responses((status = 200, description = "Events of all jobs of the caller, and of runs", content_type = "text/event-stream", body = String)))]
pub(super) async fn of_all(State(app): State<App>, caller: Caller) -> Response {
    let messages = app.service.all_events(&caller.owner).map(|numbered| {
        let mut data = data(&numbered);
        data["job"] = numbered.job.to_string().into();
        message(numbered.event.name(), &data)
    });
    let mut stopping = app.stopping.clone();
    passed_on(messages.merge(changes(&app)), async move { drop(stopping.wait_for(|stops| *stops).await) })
}

/// Messages `run` about runs that change, as long as there is a listener.
fn changes(app: &App) -> impl Stream<Item = Message> + Send + 'static {
    let (sender, receiver) = mpsc::channel(16);
    let (app, mut stopping) = (app.clone(), app.stopping.clone());
    tokio::spawn(async move {
        let mut seen = None;
        loop {
            let app = app.clone();
            let looked = blocking(move || {
                let changes = app.page.runs.changed(&mut seen);
                (changes, seen)
            });
            let Ok((changes, now)) = looked.await else { return };
            seen = now;
            for change in changes {
                let data = serde_json::to_value(change).unwrap_or_default();
                if sender.send(message("run", &data)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
                _ = stopping.wait_for(|stops| *stops) => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
