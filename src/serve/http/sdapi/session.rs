//! State that is global in AUTOMATIC1111, kept per caller: the selected model and the jobs in progress. A caller is a key together
//! with an address.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{MutexGuard, PoisonError},
};

use axum::{
    Json,
    extract::{Request, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    super::{
        App,
        auth::Caller,
        blocking, body,
        errors::{Answer, Failure},
        fields::{Asked, Fields},
        images,
    },
    session_of,
};
use crate::serve::{
    ModelInfo,
    job::{Job, JobId, Status},
    record::now,
};

/// The maximum number of callers whose model is kept; beyond that, the first in order is forgotten.
const CALLERS: usize = 10_000;

/// The state of all callers.
#[derive(Debug, Default)]
pub(in super::super) struct Automatic {
    chosen: BTreeMap<(String, IpAddr), String>,
    shown: Vec<((String, IpAddr), JobId)>,
}

fn automatic(app: &App) -> MutexGuard<'_, Automatic> {
    app.automatic.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job with a waiting caller: `progress` shows it and `interrupt` reaches it, as long as this lives.
pub(super) struct Shown {
    app: App,
    id: JobId,
}

impl Shown {
    pub fn new(app: &App, caller: &Caller, id: JobId) -> Self {
        automatic(app).shown.push((session_of(caller), id));
        Self { app: app.clone(), id }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        automatic(&self.app).shown.retain(|(_, id)| *id != self.id);
    }
}

/// The jobs that a caller waits for, the oldest first.
fn shown(app: &App, caller: &Caller) -> Vec<JobId> {
    let session = session_of(caller);
    automatic(app).shown.iter().filter(|(own, _)| *own == session).map(|(_, id)| *id).collect()
}

/// The model with this name.
pub(super) fn find(app: &App, name: &str) -> Option<ModelInfo> {
    app.service.models().into_iter().find(|model| model.name == name)
}

/// The model that a caller chose, or the default one.
///
/// # Errors
/// There is no model; a running server always has one.
pub(super) fn model(app: &App, caller: &Caller) -> Answer<ModelInfo> {
    let chosen = automatic(app).chosen.get(&session_of(caller)).cloned();
    let chosen = chosen.and_then(|name| find(app, &name));
    let model = chosen.or_else(|| app.service.models().into_iter().next());
    model.ok_or_else(|| Failure::not_found("sd_model_checkpoint", "is not served here"))
}

/// Cancel your own jobs in progress in this dialect
#[utoipa::path(post, path = "/sdapi/v1/interrupt", tag = "automatic1111",
    responses((status = 200, description = "Cancelled, or will be within one step", body = Object)))]
pub(in super::super) async fn interrupt(State(app): State<App>, caller: Caller) -> Answer<Json<Value>> {
    // One may have ended in the meantime, which is fine.
    let cancel = move || shown(&app, &caller).into_iter().for_each(|id| drop(app.service.cancel(id, &caller.owner)));
    blocking(cancel).await.map(|()| Json(json!({})))
}

/// Options of the progress.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct Shows {
    /// Whether to leave out `current_image`. Default false.
    #[serde(default)]
    skip_current_image: bool,
}

/// The progress of your jobs in this dialect.
#[derive(Serialize, ToSchema)]
#[schema(as = AutomaticProgress)]
pub(in super::super) struct Progress {
    /// Progress of the running job, from 0 to 1; 0 if none is running.
    progress: f64,
    /// Estimated remaining time in seconds; 0 if nothing is running.
    eta_relative: f64,
    state: State1111,
    /// The latest preview of the running job, a small PNG in base64.
    current_image: Option<String>,
    textinfo: Option<String>,
}

/// Further details of the progress.
#[derive(Serialize, ToSchema)]
#[schema(as = AutomaticState)]
struct State1111 {
    skipped: bool,
    interrupted: bool,
    /// The ID of the job.
    job: String,
    /// The number of unfinished jobs.
    job_count: usize,
    job_no: usize,
    sampling_step: usize,
    sampling_steps: usize,
}

/// Get the progress of your jobs in this dialect
#[utoipa::path(get, path = "/sdapi/v1/progress", tag = "automatic1111", params(Shows),
    responses((status = 200, description = "The progress", body = Progress)))]
pub(in super::super) async fn progress(
    State(app): State<App>,
    caller: Caller,
    Asked(wanted): Asked<Shows>,
) -> Json<Progress> {
    let jobs = shown(&app, &caller).into_iter().filter_map(|id| app.service.job(id, &caller.owner).ok());
    let jobs: Vec<Job> = jobs.filter(|job| !job.status.is_final()).collect();
    let running = jobs.iter().find(|job| job.status == Status::Running);
    let (step, of) = running.map_or((0, 0), |job| (job.step, job.of));
    let progress = if of == 0 { 0.0 } else { step as f64 / of as f64 };
    let state = State1111 {
        skipped: false,
        interrupted: false,
        job: jobs.first().map_or(String::new(), |job| job.id.to_string()),
        job_count: jobs.len(),
        job_no: 0,
        sampling_step: step,
        sampling_steps: of,
    };
    let left = running.and_then(|job| job.started).filter(|_| progress > 0.0);
    let eta_relative = left.map_or(0.0, |started| (now() - started).max(0.0) * (1.0 - progress) / progress);
    let running = running.filter(|_| !wanted.skip_current_image);
    let current_image = running.and_then(|job| app.service.preview(job.id, &caller.owner).ok().flatten());
    let current_image = current_image.map(|png| images::to_text(&png));
    Json(Progress { progress, eta_relative, state, current_image, textinfo: None })
}

/// Get your options: the model
#[utoipa::path(get, path = "/sdapi/v1/options", tag = "automatic1111",
    responses((status = 200, description = "`sd_model_checkpoint`, the name of the model, and fixed options", body = Object)))]
pub(in super::super) async fn options(State(app): State<App>, caller: Caller) -> Answer<Json<Value>> {
    let model = model(&app, &caller)?;
    Ok(Json(json!({"sd_model_checkpoint": model.name, "samples_format": "png", "sd_vae": "Automatic"})))
}

/// Select your model as `sd_model_checkpoint`; other options are ignored, and listed in the response
#[utoipa::path(post, path = "/sdapi/v1/options", tag = "automatic1111", request_body(content = Object),
    responses((status = 200, description = "`ignored`: the options that were not used", body = Object),
        (status = 404, description = "There is no such model")))]
pub(in super::super) async fn set_options(
    State(app): State<App>,
    caller: Caller,
    asked: Request,
) -> Answer<Json<Value>> {
    const KEY: &str = "sd_model_checkpoint";
    let mut fields = Fields::from_json(&body::read(&app, asked, app.limits.body_bytes.0).await?)?.leniently();
    if let Some(name) = fields.take::<String>(KEY)? {
        let model = find(&app, &name).ok_or_else(|| Failure::not_found(KEY, "is not served here"))?;
        let mut automatic = automatic(&app);
        if automatic.chosen.len() >= CALLERS {
            automatic.chosen.pop_first();
        }
        automatic.chosen.insert(session_of(&caller), model.name);
    }
    // Clients send back all options that they received.
    for own in ["samples_format", "sd_vae"] {
        fields.take::<Value>(own)?;
    }
    Ok(Json(json!({"ignored": fields.ignored()})))
}
