//! The record of a job in the journal.

use std::time::{SystemTime, UNIX_EPOCH};

use super::job::{Failure, Job, JobId, JobRequest, Made, Status};

/// How often a job is restarted after a server died while running it.
pub const MOST_RESTARTS: u32 = 2;

/// The record of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub id: JobId,
    pub owner: String,
    /// The idempotency key.
    pub key: Option<String>,
    /// The hash of the request under that key.
    pub hash: String,
    /// The request, with everything filled in that must be the same at every start, and without the bytes of images.
    pub request: JobRequest,
    pub has_image: bool,
    pub has_mask: bool,
    pub status: Status,
    /// When it was accepted, in seconds since 1970; the next two are in the same unit.
    pub created: f64,
    pub started: Option<f64>,
    pub finished: Option<f64>,
    /// How often it was started, by this server and earlier ones.
    pub starts: u32,
    /// The most attempts that any of its images took, under the last server.
    pub attempts: u32,
    pub error: Option<Failure>,
    pub images: Vec<Made>,
    /// Whether its images have expired.
    pub expired: bool,
}

impl Record {
    /// The job as its owner sees it, with `step` of `of` steps done.
    pub fn job(&self, queue_position: Option<usize>, step: usize, of: usize) -> Job {
        Job {
            id: self.id,
            owner: self.owner.clone(),
            status: self.status,
            request: self.request.clone(),
            has_image: self.has_image,
            created: self.created,
            started: self.started,
            finished: self.finished,
            queue_position,
            step,
            of,
            attempts: self.attempts,
            error: self.error.clone(),
            images: self.images.clone(),
        }
    }

    /// The size of its images.
    pub fn bytes(&self) -> u64 {
        self.images.iter().map(|image| image.bytes).sum()
    }
}

/// The current time in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
