//! Callers that wait for their images; a job is cancelled when its caller is gone.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::runtime::Handle;

use super::{
    App, blocking,
    errors::{Answer, Failure},
    images::{self, Format},
};
use crate::{
    error::Error,
    serve::job::{Job, JobId, JobRequest, Status},
};

/// How often a waiting caller checks whether the server is stopping.
const LOOK: Duration = Duration::from_millis(100);

/// A job with a waiting caller. If this is dropped before the job has ended, as when the caller's connection closes, the job is
/// cancelled.
pub(super) struct Held {
    app: App,
    pub id: JobId,
    pub owner: String,
    ended: bool,
}

impl Held {
    /// Submits a job.
    ///
    /// # Errors
    /// The job is not accepted.
    pub async fn submit(app: &App, request: JobRequest, owner: &str) -> Answer<Self> {
        let (app, owner) = (app.clone(), owner.to_string());
        // Created where the job is accepted: the caller may be gone before this thread responds.
        blocking(move || {
            let accepted = app.service.submit(request, &owner, None)?;
            Ok(Self { app, id: accepted.id, owner, ended: false })
        })
        .await?
    }

    /// Waits for the job to complete, and returns it.
    ///
    /// # Errors
    /// It failed, was cancelled, or was still waiting when the server stopped.
    pub async fn wait(&mut self) -> Answer<Job> {
        let (app, id, owner) = (self.app.clone(), self.id, self.owner.clone());
        let job = tokio::select! {
            job = app.service.wait(id, &owner) => job.map_err(|missing| Failure::missing("job", missing))?,
            () = self.is_left_over() => return Err(Failure::stopping()),
        };
        self.ended = job.status.is_final();
        completed(job)
    }

    /// Marks the job as ended: there is nothing left to cancel.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Returns when the server is stopping and the job has not started.
    async fn is_left_over(&self) {
        let mut stopping = self.app.stopping.clone();
        _ = stopping.wait_for(|stops| *stops).await;
        while self.app.service.job(self.id, &self.owner).is_ok_and(|job| job.status == Status::Running) {
            tokio::time::sleep(LOOK).await;
        }
        if self.app.service.job(self.id, &self.owner).is_ok_and(|job| job.status.is_final()) {
            std::future::pending::<()>().await; // the other branch reports it
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        tracing::debug!(job = %self.id, "cancelled: its caller is gone");
        let (app, id, owner) = (self.app.clone(), self.id, std::mem::take(&mut self.owner));
        let cancel = move || drop(app.service.cancel(id, &owner));
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(cancel)),
            Err(_) => cancel(),
        }
    }
}

/// Checks that an ended job is completed.
///
/// # Errors
/// It failed or was cancelled.
pub(super) fn completed(job: Job) -> Answer<Job> {
    match (&job.error, job.status) {
        (Some(failure), _) => Err(Failure::of_job(failure)),
        (None, Status::Completed) => Ok(job),
        // The server stopped before it was done.
        (None, status) if !status.is_final() => Err(Failure::stopping()),
        (None, status) => {
            let error = Error::setting("job", format!("was {}", status.word()));
            Err(Failure::new(StatusCode::CONFLICT, "cancelled", &error))
        }
    }
}

/// All images of a completed job in one format.
///
/// # Errors
/// One has been removed.
pub(super) async fn files(app: &App, job: &Job, format: Format, quality: u8) -> Answer<Vec<Vec<u8>>> {
    let (app, id, owner, count) = (app.clone(), job.id, job.owner.clone(), job.images.len());
    blocking(move || (0..count).map(|number| file(&app, id, &owner, number, format, quality)).collect()).await?
}

/// One image of a completed job. Blocks.
///
/// # Errors
/// It does not exist.
pub(super) fn file(app: &App, id: JobId, owner: &str, number: usize, format: Format, quality: u8) -> Answer<Vec<u8>> {
    let png = app.service.image(id, owner, number).map_err(|missing| Failure::missing("image", missing))?;
    images::convert(png, format, quality, None).map_err(|error| Failure::broken(&error))
}
