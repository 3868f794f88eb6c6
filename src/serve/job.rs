//! A job: what is asked for, what became of it, and what is told about it meanwhile.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{error::Error, schedulers::SchedulerName};

/// The name of a job: a UUID of version 7, so that names sort by the time of their acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// One that no other job has.
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

/// A request for images. From text alone they are made; with an `image` that is edited, by a model that edits by instruction, or
/// changed as far as `strength` says; with a `mask` too, only where that is white.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The name of a model. Default: the first that is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to show; an instruction, where the model edits.
    pub prompt: String,
    /// What not to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// How many images. Default 1.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 10)]
    pub count: usize,
    /// The seed of the first image; the next has the next. Default: random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// In pixels. Default: that of `image`, else the model's native size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// In pixels. Default: that of `image`, else the model's native size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Denoising steps. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Guidance scale. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Image guidance scale of a model that edits. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// Scale of classifier-free guidance with a negative prompt, where `guidance` is distilled. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// The sampler. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub scheduler: Option<SchedulerName>,
    /// Adapters, all worn at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraChoice>,
    /// The image to edit or to start from: PNG, JPEG or WebP, in base64. It is resized to `width` × `height`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Byte)]
    pub image: Option<FileBytes>,
    /// Where to change `image`: white in an image of its size, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Byte)]
    pub mask: Option<FileBytes>,
    /// The share of the steps to run on `image`, above 0 and at most 1. Default 0.6. Not for models that edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Whether there are to be events with previews.
    #[serde(default)]
    pub previews: bool,
}

impl JobRequest {
    /// One image that shows `prompt`; all else is the model's default.
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

/// An adapter to wear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraChoice {
    /// Its name.
    pub name: String,
    /// How much of it: 1 is as trained. Default 1.
    #[serde(default = "whole")]
    #[schema(default = 1.0)]
    pub scale: f64,
}

fn whole() -> f64 {
    1.0
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits.
    Queued,
    /// Its images are being made.
    Running,
    /// Its images are there.
    Completed,
    /// It cannot be done.
    Failed,
    /// Its owner did not want it any more.
    Cancelled,
}

impl Status {
    /// Whether nothing more happens to the job.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The word for it.
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
    /// Its name.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Whose it is.
    #[serde(skip)]
    pub owner: String,
    /// Where it stands.
    pub status: Status,
    /// What is asked for, with `model`, `seed`, `width`, `height` and `steps` filled in, and without the bytes of images.
    pub request: JobRequest,
    /// Whether it changes an image.
    pub has_image: bool,
    /// When it was accepted, in seconds since 1970.
    pub created: f64,
    /// When it began, the last time it did, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<f64>,
    /// When it ended, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<f64>,
    /// Jobs before it, while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<usize>,
    /// Denoising steps done, of all its images together.
    pub step: usize,
    /// Denoising steps to do, of all its images together.
    pub of: usize,
    /// How often the images were begun: 1, or 2 if they did not look right the first time.
    pub attempts: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Its images, once it is completed.
    pub images: Vec<Made>,
}

/// An image that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Made {
    /// The seed that makes it again.
    pub seed: u64,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Of its PNG file.
    pub bytes: u64,
}

/// Why a job failed: an [`Error`] as JSON, with its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The thing that is wrong.
    #[schema(value_type = Object)]
    pub subject: Value,
    /// The problem with it: a sentence, or a list of them.
    #[schema(value_type = Object)]
    pub problem: Value,
    /// The next move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Subject and problem as a sentence.
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

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// It waits.
    Queued {
        /// Jobs before it.
        position: usize,
    },
    /// It began.
    Started {
        /// The number of the attempt, from 1.
        attempt: u32,
    },
    /// Steps were done.
    Progress {
        /// Denoising steps done, of all its images together.
        step: usize,
        /// Denoising steps to do, of all its images together.
        of: usize,
        /// How long the rest will take.
        #[serde(skip_serializing_if = "Option::is_none")]
        eta_seconds: Option<f64>,
    },
    /// About what an image will look like.
    Preview {
        /// The number of the image, from 0.
        image: usize,
        /// Its denoising steps done.
        step: usize,
        /// A small PNG, in base64.
        #[schema(value_type = String, format = Byte)]
        png: FileBytes,
    },
    /// Its images are there.
    Completed {
        /// All of them.
        images: Vec<Made>,
    },
    /// It cannot be done.
    Failed {
        /// Why.
        error: Failure,
    },
    /// Its owner did not want it any more.
    Cancelled {},
}

impl Event {
    /// What it is called in a stream of events.
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

    /// Whether nothing more happens after it.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::Failed { .. } | Self::Cancelled {})
    }
}

/// An event of a job, in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// Whose it is.
    pub job: JobId,
    /// Numbers of a job's events rise from 1 on. Events that a later one makes worthless are left out of what is told later, so
    /// some may be missing.
    pub number: u64,
    /// What happened.
    pub event: Event,
}
