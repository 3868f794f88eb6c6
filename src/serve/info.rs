//! Descriptions of the server's models, adapters and state.

use serde::Serialize;
use utoipa::ToSchema;

use super::job::JobId;

/// A model that is served.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Its name in requests.
    pub name: String,
    /// The model family, such as `FLUX.1`.
    pub family: String,
    /// The side of the square images that the model was trained for, in pixels.
    pub native_size: usize,
    /// Width and height must be multiples of this, in pixels.
    pub size_step: usize,
    /// Whether it edits images by instruction.
    pub edits: bool,
    /// Whether its weights are loaded.
    pub loaded: bool,
    /// Whether it is the default model.
    pub default: bool,
    /// The defaults for requests.
    pub defaults: ModelDefaults,
    /// Names of the samplers to choose from; empty if the model has a fixed one.
    pub schedulers: Vec<String>,
}

/// A model's defaults for requests.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ModelDefaults {
    /// Number of denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Scale of classifier-free guidance with a negative prompt, if guidance is distilled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// Image guidance scale, if the model edits images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// The sampler, if it can be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
}

/// An adapter that is served.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct LoraInfo {
    /// Its name in requests.
    pub name: String,
    /// The size of its file.
    pub bytes: u64,
    /// The largest rank of its layers; absent if it has no low-rank pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The number of layers that it changes.
    pub layers: usize,
    /// Whether it changes text encoders, too.
    pub changes_text: bool,
    /// The names of the models that it fits.
    pub fits: Vec<String>,
    /// Whether it is in memory.
    pub in_memory: bool,
    /// Whether it was uploaded, and so can be removed.
    pub uploaded: bool,
}

/// What the server is doing.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StatusInfo {
    /// The device: `cpu` or `cuda:N`; `workers` where other machines make the images.
    pub device: String,
    /// The queue of waiting jobs.
    pub queue: QueueStatus,
    /// Running jobs.
    #[schema(value_type = Vec<String>)]
    pub running: Vec<JobId>,
    /// Memory in use.
    pub memory: MemoryStatus,
    /// The version of kiln.
    pub version: &'static str,
}

/// The queue of waiting jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueueStatus {
    /// The number of waiting jobs.
    pub depth: usize,
    /// The maximum number of waiting jobs.
    pub limit: usize,
}

/// Memory in use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemoryStatus {
    /// GPU memory; absent on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Host memory of this process.
    pub host_bytes: u64,
}
