//! What the server answers to wishes: a job is accepted or not, something is there or not.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::job::{JobId, Status};
use crate::error::Error;

/// A job that was accepted: whatever happens to this process, it will be done or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Accepted {
    /// Its name.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Where it stands: queued, unless it was accepted before under the same idempotency key.
    pub status: Status,
    /// Jobs before it, while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<usize>,
}

/// Why a job was not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// It can never be done: 400.
    Invalid(Error),
    /// The idempotency key belongs to another request: 422.
    Conflict(Error),
    /// As many jobs wait as may: 429.
    QueueFull {
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// As many jobs of this owner wait as may: 429.
    ShareFull {
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// The server is stopping: 503.
    Stopping,
    /// The journal or a folder cannot be written: 500.
    Broken(Error),
}

/// Why something is not there.
#[derive(Debug)]
pub enum Missing {
    /// Nobody knows it, or it belongs to somebody else: 404.
    Unknown,
    /// It was there, and was removed by its age or by the limit of bytes: 410.
    Expired,
    /// It should be there, but the disk refuses: 500.
    Broken(Error),
}

/// What a wish to cancel came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The job is cancelled, or will be within one step.
    Cancelled,
    /// It had ended before, so.
    Finished(Status),
}

impl Refusal {
    /// The word for it in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Conflict(_) => "conflict",
            Self::QueueFull { .. } => "queue_full",
            Self::ShareFull { .. } => "share_full",
            Self::Stopping => "stopping",
            Self::Broken(_) => "broken",
        }
    }
}
