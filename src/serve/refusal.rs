//! The service's answers: a job is accepted or refused, something exists or is missing.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::job::{JobId, Status};
use crate::error::Error;

/// An accepted job: whatever happens to this process, it will complete or fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Accepted {
    /// Its ID.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Its status: queued, unless it was accepted before under the same idempotency key.
    pub status: Status,
    /// The number of jobs ahead of it, while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<usize>,
}

/// Why a job was not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// The request is invalid: 400.
    Invalid(Error),
    /// The idempotency key belongs to another request: 422.
    Conflict(Error),
    /// The queue is full: 429.
    QueueFull {
        /// How long to wait before trying again.
        retry_after: Duration,
    },
    /// The owner's share of the queue is full: 429.
    ShareFull {
        /// How long to wait before trying again.
        retry_after: Duration,
    },
    /// The server is stopping: 503.
    Stopping,
    /// The journal or a folder cannot be written: 500.
    Broken(Error),
}

/// Why something is missing.
#[derive(Debug)]
pub enum Missing {
    /// It does not exist, or belongs to another owner: 404.
    Unknown,
    /// It was removed because of its age or the size limit: 410.
    Expired,
    /// It exists, but there is an I/O error: 500.
    Broken(Error),
}

/// The outcome of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The job is cancelled, or will be within one step.
    Cancelled,
    /// The job had already ended, with this status.
    Finished(Status),
}

impl Refusal {
    /// Its label in metrics.
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
