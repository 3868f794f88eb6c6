//! All that is known of a job, as the journal keeps it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::job::{Failure, Job, JobId, JobRequest, Made, Status};

/// How often a job is begun again after a server died in the middle of it.
pub const MOST_RESTARTS: u32 = 2;

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub id: JobId,
    pub owner: String,
    /// The key under which the owner may ask for it again.
    pub key: Option<String>,
    /// The hash of what was asked for under that key.
    pub hash: String,
    /// With everything filled in that is to be the same whenever it is begun, and without the bytes of images.
    pub request: JobRequest,
    pub has_image: bool,
    pub has_mask: bool,
    pub status: Status,
    /// In seconds since 1970, as the next two.
    pub created: f64,
    pub started: Option<f64>,
    pub finished: Option<f64>,
    /// How often it was begun, by this server and those before it.
    pub starts: u32,
    /// How often its images were begun, at most, by the last of them.
    pub attempts: u32,
    pub error: Option<Failure>,
    pub images: Vec<Made>,
    /// Whether it is over for so long that its images are gone.
    pub expired: bool,
}

impl Record {
    /// As its owner sees it. `of` is how many steps there are, `step` how many are done.
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

    /// Of its images.
    pub fn bytes(&self) -> u64 {
        self.images.iter().map(|image| image.bytes).sum()
    }
}

/// Now, in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
