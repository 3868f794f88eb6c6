//! The server without HTTP: what takes jobs and tells about them.

use std::{sync::Arc, time::Duration};

use burn::tensor::Device;
use serde::Serialize;
use tokio_stream::Stream;
use utoipa::ToSchema;

use super::{
    config::ServeConfig,
    job::{Job, JobId, JobRequest, Numbered, Status},
};
use crate::error::{Error, Result};

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

/// A model that is served.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ModelInfo {
    /// What requests call it.
    pub name: String,
    /// The kind of model, such as `FLUX.1`.
    pub family: String,
    /// The side of a square as large as the images that it was made for, in pixels.
    pub native_size: usize,
    /// A multiple of this must be each side, in pixels.
    pub size_step: usize,
    /// Whether it edits images by instruction.
    pub edits: bool,
    /// Whether its weights are loaded.
    pub loaded: bool,
    /// Whether it is the one for requests that name none.
    pub default: bool,
    /// What requests leave open.
    pub defaults: ModelDefaults,
    /// Names of samplers to choose from; empty where the model has one of its own.
    pub schedulers: Vec<String>,
}

/// What requests for images of a model leave open.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ModelDefaults {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Scale of classifier-free guidance with a negative prompt, where guidance is distilled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// Image guidance scale, where the model edits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// The sampler, where one can be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
}

/// An adapter that is served.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct LoraInfo {
    /// What requests call it.
    pub name: String,
    /// Of its file.
    pub bytes: u64,
    /// The largest rank of its layers; none where they are no low-rank pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// How many layers it changes.
    pub layers: usize,
    /// Whether it changes text encoders, too.
    pub changes_text: bool,
    /// Names of the models that it fits.
    pub fits: Vec<String>,
    /// Whether it is in memory.
    pub in_memory: bool,
    /// Whether it was uploaded, and so can be removed.
    pub uploaded: bool,
}

/// What the server is doing.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StatusInfo {
    /// What computes: `cpu` or `cuda:N`.
    pub device: String,
    /// Jobs that wait.
    pub queue: QueueStatus,
    /// Jobs whose images are being made.
    #[schema(value_type = Vec<String>)]
    pub running: Vec<JobId>,
    /// Memory in use.
    pub memory: MemoryStatus,
    /// Of this program.
    pub version: &'static str,
}

/// Jobs that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueueStatus {
    /// How many.
    pub depth: usize,
    /// How many at most.
    pub limit: usize,
}

/// Memory in use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemoryStatus {
    /// On the GPU; none where the CPU computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Of this process on the host.
    pub host_bytes: u64,
}

/// The handle on a running server: as many as one likes, on any thread.
///
/// What is said to block waits for the disk: asynchronous callers use `spawn_blocking`. All else answers at once.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {}

impl Service {
    /// Starts the engine on `device`, and takes up the jobs that the journal in `config.state` still holds.
    ///
    /// # Errors
    /// A model cannot be used, a folder is missing, or another server works in the state folder.
    pub fn start(config: ServeConfig, device: &Device) -> Result<Self> {
        todo!("{config:?} {device:?}")
    }

    /// The configuration.
    pub fn config(&self) -> &ServeConfig {
        todo!()
    }

    /// Accepts a job of `owner`. The same request under the same idempotency key is the same job. Blocks.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn submit(
        &self,
        request: JobRequest,
        owner: &str,
        idempotency_key: Option<&str>,
    ) -> std::result::Result<Accepted, Refusal> {
        todo!("{request:?} {owner} {idempotency_key:?}")
    }

    /// A job of `owner`.
    ///
    /// # Errors
    /// There is none.
    pub fn job(&self, id: JobId, owner: &str) -> std::result::Result<Job, Missing> {
        todo!("{id} {owner}")
    }

    /// All jobs of `owner` that are known, the newest first.
    pub fn jobs(&self, owner: &str) -> Vec<Job> {
        todo!("{owner}")
    }

    /// The events of a job of `owner` with numbers above `after`, up to the last that there will be.
    ///
    /// # Errors
    /// There is no such job.
    pub fn events(
        &self,
        id: JobId,
        owner: &str,
        after: u64,
    ) -> std::result::Result<impl Stream<Item = Numbered> + Send + 'static, Missing> {
        let _ = (id, owner, after);
        std::result::Result::<tokio_stream::Empty<Numbered>, Missing>::Err(Missing::Unknown)
    }

    /// The events of all jobs of `owner` from now on. A listener who does not keep up misses some.
    pub fn all_events(&self, owner: &str) -> impl Stream<Item = Numbered> + Send + 'static {
        let _ = owner;
        tokio_stream::empty()
    }

    /// A job of `owner` once it has ended.
    ///
    /// # Errors
    /// There is none.
    pub async fn wait(&self, id: JobId, owner: &str) -> std::result::Result<Job, Missing> {
        todo!("{id} {owner}")
    }

    /// Cancels a job of `owner`: at once while it waits, else before its next step.
    ///
    /// # Errors
    /// There is none.
    pub fn cancel(&self, id: JobId, owner: &str) -> std::result::Result<CancelOutcome, Missing> {
        todo!("{id} {owner}")
    }

    /// The PNG file of the image `number`, from 0, of a job of `owner`. Blocks.
    ///
    /// # Errors
    /// There is none.
    pub fn image(&self, id: JobId, owner: &str, number: usize) -> std::result::Result<Vec<u8>, Missing> {
        todo!("{id} {owner} {number}")
    }

    /// The models, the default one first.
    pub fn models(&self) -> Vec<ModelInfo> {
        todo!()
    }

    /// Loads a model, once running jobs leave the engine to it.
    ///
    /// # Errors
    /// There is no such model, or it cannot be loaded.
    pub async fn load(&self, model: &str) -> Result<()> {
        todo!("{model}")
    }

    /// Lets go of a model's weights, once its running jobs have ended.
    ///
    /// # Errors
    /// There is no such model.
    pub async fn unload(&self, model: &str) -> Result<()> {
        todo!("{model}")
    }

    /// The adapters, in the order of their names. Blocks.
    pub fn loras(&self) -> Vec<LoraInfo> {
        todo!()
    }

    /// Takes an adapter: the bytes of a safetensors file. One that was uploaded under the same name is replaced. Blocks.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]: the name cannot be one, or is that of an adapter in a configured folder; the file is too large or
    /// broken, holds no adapter, or fits none of the models. [`Refusal::Broken`]: the disk refuses.
    pub fn upload_lora(&self, name: &str, bytes: &[u8]) -> std::result::Result<LoraInfo, Refusal> {
        todo!("{name} {bytes:?}")
    }

    /// Removes an adapter that was uploaded. Jobs that were accepted with it and have not begun fail. Blocks.
    ///
    /// # Errors
    /// [`Missing::Unknown`]: there is none that was uploaded.
    pub fn remove_lora(&self, name: &str) -> std::result::Result<(), Missing> {
        todo!("{name}")
    }

    /// What the server is doing.
    pub fn status(&self) -> StatusInfo {
        todo!()
    }

    /// Whether jobs are taken and done.
    ///
    /// # Errors
    /// Why they are not, in a sentence.
    pub fn ready(&self) -> std::result::Result<(), String> {
        todo!()
    }

    /// Its metrics in the text format of Prometheus. Nothing in them is from prompts.
    pub fn metrics(&self) -> String {
        todo!()
    }

    /// Accepts nothing more, and ends the engine: running jobs are finished within `deadline`, or else begun again by the next
    /// server with this state folder, as those that wait are. Streams of events end. Blocks.
    pub fn stop(&self, deadline: Duration) {
        todo!("{deadline:?}")
    }
}
