//! What the server tells about itself: models, adapters, its state.

use serde::Serialize;
use utoipa::ToSchema;

use super::job::JobId;

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
