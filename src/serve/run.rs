//! A run of training as others see it.

use serde::Serialize;
use utoipa::ToSchema;

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// A process on this machine trains.
    Running,
    /// The process was asked to stop, and saves.
    Stopping,
    /// All its steps are done.
    Finished,
    /// It ended before; `kiln train` can resume it.
    Ended,
}

/// A run in a list of runs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunSummary {
    /// The name of its folder.
    pub name: String,
    /// What it is doing.
    pub state: RunState,
    /// The last step that it recorded.
    pub step: u64,
    /// How many steps it is to have; 0 if its configuration does not say.
    pub max_steps: u64,
    /// The model it began from.
    pub model: String,
    /// What is trained: `flow_matching` or `instruct_pix2pix`.
    pub objective: String,
    /// When it recorded something for the last time, in seconds since 1970.
    pub updated: f64,
    /// The last training loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The last held-out loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// How long a step takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_per_step: Option<f64>,
    /// How long the steps that are left will take, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Memory in use on the host, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<f64>,
    /// Memory in use on the GPU, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_mib: Option<f64>,
    /// The newest grid of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
}

/// A run with all that is in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunDetail {
    /// As in the list.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Its configuration as it was written.
    pub config: String,
    /// Its checkpoints, the oldest first.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Its grids of samples, the oldest first.
    pub samples: Vec<SampleInfo>,
    /// The step with the lowest held-out loss, of those with a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// Lines of its metrics that are no records.
    pub unreadable_lines: usize,
}

/// A checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CheckpointInfo {
    /// Optimizer steps done.
    pub step: u64,
    /// Of all its files.
    pub bytes: u64,
    /// Its held-out loss, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Whether it holds an adapter that can be served.
    pub adapter: bool,
}

/// A grid of samples.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SampleInfo {
    /// The name of its file.
    pub file: String,
    /// After how many steps it was made.
    pub step: u64,
}
