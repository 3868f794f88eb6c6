//! Callers who wait for their images: a job that is cancelled when nobody waits for it any more.

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

/// How often a caller whose job still waits is told that the server stops.
const LOOK: Duration = Duration::from_millis(100);

/// A job that somebody waits for. Dropped before it has ended, as it is when the caller's connection closes, it is cancelled.
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
    /// It is not accepted.
    pub async fn submit(app: &App, request: JobRequest, owner: &str) -> Answer<Self> {
        let (app, owner) = (app.clone(), owner.to_string());
        // Held from where it is accepted: the caller may be gone before this thread has told.
        blocking(move || {
            let accepted = app.service.submit(request, &owner, None)?;
            Ok(Self { app, id: accepted.id, owner, ended: false })
        })
        .await?
    }

    /// The job once it is completed.
    ///
    /// # Errors
    /// It failed or was cancelled, or it still waited when the server stopped.
    pub async fn wait(&mut self) -> Answer<Job> {
        let (app, id, owner) = (self.app.clone(), self.id, self.owner.clone());
        let job = tokio::select! {
            job = app.service.wait(id, &owner) => job.map_err(|missing| Failure::missing("job", missing))?,
            () = self.is_left_over() => return Err(Failure::stopping()),
        };
        self.ended = job.status.is_final();
        completed(job)
    }

    /// Nothing is left to cancel.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Ends when the server stops before the job began.
    async fn is_left_over(&self) {
        let mut stopping = self.app.stopping.clone();
        _ = stopping.wait_for(|stops| *stops).await;
        while self.app.service.job(self.id, &self.owner).is_ok_and(|job| job.status == Status::Running) {
            tokio::time::sleep(LOOK).await;
        }
        if self.app.service.job(self.id, &self.owner).is_ok_and(|job| job.status.is_final()) {
            std::future::pending::<()>().await; // the other branch tells it
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        tracing::debug!(job = %self.id, "cancelled: nobody waits for it any more");
        let (app, id, owner) = (self.app.clone(), self.id, std::mem::take(&mut self.owner));
        let cancel = move || drop(app.service.cancel(id, &owner));
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(cancel)),
            Err(_) => cancel(),
        }
    }
}

/// A job that has ended, if its images are there.
///
/// # Errors
/// It failed or was cancelled.
pub(super) fn completed(job: Job) -> Answer<Job> {
    match (&job.error, job.status) {
        (Some(failure), _) => Err(Failure::of_job(failure)),
        (None, Status::Completed) => Ok(job),
        // The server stops before it was done.
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
/// One is not there any more.
pub(super) async fn files(app: &App, job: &Job, format: Format, quality: u8) -> Answer<Vec<Vec<u8>>> {
    let (app, id, owner, count) = (app.clone(), job.id, job.owner.clone(), job.images.len());
    blocking(move || (0..count).map(|number| file(&app, id, &owner, number, format, quality)).collect()).await?
}

/// One image of a completed job. Blocks.
///
/// # Errors
/// It is not there.
pub(super) fn file(app: &App, id: JobId, owner: &str, number: usize, format: Format, quality: u8) -> Answer<Vec<u8>> {
    let png = app.service.image(id, owner, number).map_err(|missing| Failure::missing("image", missing))?;
    images::convert(png, format, quality, None).map_err(|error| Failure::broken(&error))
}
