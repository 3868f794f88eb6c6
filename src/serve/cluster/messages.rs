//! What servers and workers write to each other, as JSON.

use serde::{Deserialize, Serialize};

use crate::serve::job::{Failure, FileBytes, JobId, JobRequest, Made};

/// What both sides have to have in common: the same release makes the same images, and writes the same messages.
pub const VERSION: &str = concat!("kiln ", env!("CARGO_PKG_VERSION"), ", messages of version 2");

/// A job for a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The [`VERSION`] of who wrote it.
    pub version: String,
    pub id: JobId,
    /// Who is to hear of it.
    pub sender: String,
    /// Its adapters are named by the hashes of their files; its image and its mask are in the depot.
    pub request: JobRequest,
    pub has_image: bool,
    pub has_mask: bool,
    /// How much to change the image, unless the model edits.
    pub strength: Option<f64>,
    /// Of the model, where the sender has it.
    pub fingerprint: Option<String>,
    /// How often the job was handed to a worker before it was put into the queue as this message.
    pub deliveries: i64,
    /// How many of these ended because its worker gave it back, or the queue lost it: all but those that died with it.
    pub given_back: i64,
}

/// Something that happened to a job, which nobody needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct News {
    pub id: JobId,
    /// How often the job was handed to a worker, up to the one that tells this.
    pub delivery: i64,
    pub worker: String,
    pub told: Told,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Its images were begun, for the first or another time.
    Started { attempt: u32 },
    /// Steps were done.
    Progress { step: usize, of: usize },
    /// About what an image will look like: a small PNG.
    Preview { image: usize, step: usize, png: FileBytes },
    /// It has ended; how is in the stream of ends.
    Ended {},
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub id: JobId,
    pub delivery: i64,
    pub worker: String,
    /// How often its images were begun.
    pub attempts: u32,
    /// How long it ran.
    pub seconds: f64,
    pub how: How,
}

/// How.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Its images are in the depot, in the folder `folder` of the job; an image was changed this much.
    Completed { folder: String, images: Vec<Made>, strength: Option<f64> },
    /// It cannot be done.
    Failed { error: Failure },
}
