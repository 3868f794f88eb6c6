//! Jobs: requests, their state, and their events.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{error::Error, schedulers::SchedulerName};

/// The ID of a job: a UUID of version 7, so that IDs sort by the time of acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// A new, unique ID.
    pub(super) fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A file in memory; in JSON, its bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct FileBytes(pub Vec<u8>);

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for FileBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for FileBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(|e| de::Error::custom(format!("is not base64: {e}")))
    }
}

/// A request for images. Without `image`, images are generated from text. With `image`, a model that edits by instruction edits it,
/// and other models change it as much as `strength` says; with `mask`, only where the mask is white.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The name of a model. Default: the first one configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The prompt; for models that edit, an instruction.
    pub prompt: String,
    /// The negative prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Number of images. Default 1.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 10)]
    pub count: usize,
    /// The seed of the first image; each further image uses the next seed. Default: random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Width in pixels. Default: that of `image`, else the model's native size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height in pixels. Default: that of `image`, else the model's native size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Number of denoising steps. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Guidance scale. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Image guidance scale, for models that edit. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// Scale of classifier-free guidance with a negative prompt, if `guidance` is distilled. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// The sampler. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub scheduler: Option<SchedulerName>,
    /// The adapters to apply, all at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraChoice>,
    /// The image to edit or to start from: PNG, JPEG or WebP in base64. It is resized to `width` × `height`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Byte)]
    pub image: Option<FileBytes>,
    /// The mask, an image of the same size in base64: `image` changes where the mask is white.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Byte)]
    pub mask: Option<FileBytes>,
    /// Denoising strength: the share of the steps to run on `image`, above 0 and at most 1. Default 0.6. Not for models that edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Whether to send events with previews.
    #[serde(default)]
    pub previews: bool,
}

impl JobRequest {
    /// A request for one image of `prompt`, with the model's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            model: None,
            prompt: prompt.into(),
            negative_prompt: None,
            count: 1,
            seed: None,
            width: None,
            height: None,
            steps: None,
            guidance: None,
            image_guidance: None,
            true_guidance: None,
            scheduler: None,
            loras: Vec::new(),
            image: None,
            mask: None,
            strength: None,
            previews: false,
        }
    }
}

fn one() -> usize {
    1
}

/// An adapter to apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraChoice {
    /// Its name.
    pub name: String,
    /// Its scale; 1 is as trained. Default 1.
    #[serde(default = "whole")]
    #[schema(default = 1.0)]
    pub scale: f64,
}

fn whole() -> f64 {
    1.0
}

/// The status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting in the queue.
    Queued,
    /// Its images are being generated.
    Running,
    /// Its images are ready.
    Completed,
    /// It ended with an error.
    Failed,
    /// Cancelled by its owner.
    Cancelled,
}

impl Status {
    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job as its owner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Job {
    /// Its ID.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Its owner.
    #[serde(skip)]
    pub owner: String,
    /// Its status.
    pub status: Status,
    /// The request, with `model`, `seed`, `width`, `height` and `steps` filled in, and without the bytes of images.
    pub request: JobRequest,
    /// Whether the request has an image.
    pub has_image: bool,
    /// When it was accepted, in seconds since 1970.
    pub created: f64,
    /// When it last started, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<f64>,
    /// When it ended, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<f64>,
    /// The number of jobs ahead of it, while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<usize>,
    /// Denoising steps done, over all its images.
    pub step: usize,
    /// Denoising steps in total, over all its images.
    pub of: usize,
    /// How often its images were started: 1, or 2 if they did not pass the checks the first time.
    pub attempts: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Its images, once it is completed.
    pub images: Vec<Made>,
}

/// A generated image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Made {
    /// The seed that reproduces it.
    pub seed: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The size of its PNG file.
    pub bytes: u64,
}

/// Why a job failed: an [`Error`] as JSON, with its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The subject of the error, such as a field.
    #[schema(value_type = Object)]
    pub subject: Value,
    /// The problem: a sentence, or a list of sentences.
    #[schema(value_type = Object)]
    pub problem: Value,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Subject and problem as one sentence.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let value = |part: Result<Value, serde_json::Error>| part.unwrap_or(Value::Null); // text is always JSON
        Self {
            subject: value(serde_json::to_value(&error.subject)),
            problem: value(serde_json::to_value(&error.problem)),
            hint: error.hint.clone(),
            message: error.message(),
        }
    }
}

/// An event of a job.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// It is waiting.
    Queued {
        /// The number of jobs ahead of it.
        position: usize,
    },
    /// It started.
    Started {
        /// The number of the attempt, counted from 1.
        attempt: u32,
    },
    /// It made progress.
    Progress {
        /// Denoising steps done, over all its images.
        step: usize,
        /// Denoising steps in total, over all its images.
        of: usize,
        /// The estimated remaining time in seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        eta_seconds: Option<f64>,
    },
    /// A preview of an image.
    Preview {
        /// The number of the image, counted from 0.
        image: usize,
        /// The denoising steps done for it.
        step: usize,
        /// A small PNG, in base64.
        #[schema(value_type = String, format = Byte)]
        png: FileBytes,
    },
    /// Its images are ready.
    Completed {
        /// All its images.
        images: Vec<Made>,
    },
    /// It ended with an error.
    Failed {
        /// The error.
        error: Failure,
    },
    /// It was cancelled by its owner.
    Cancelled {},
}

impl Event {
    /// Its name in a stream of events.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Progress { .. } => "progress",
            Self::Preview { .. } => "preview",
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled {} => "cancelled",
        }
    }

    /// Whether it is the last event of its job.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::Failed { .. } | Self::Cancelled {})
    }
}

/// An event of a job, with its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// The job.
    pub job: JobId,
    /// Its number. The numbers of a job's events increase from 1; events that a later one supersedes are not sent again, so there may
    /// be gaps.
    pub number: u64,
    /// The event.
    pub event: Event,
}
