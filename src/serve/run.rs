//! The description of a training run in the API.

use serde::Serialize;
use utoipa::ToSchema;

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// A process on this machine is training.
    Running,
    /// The process was asked to stop, and is saving.
    Stopping,
    /// All its steps are done.
    Finished,
    /// It ended early; `kiln train` can resume it.
    Ended,
}

/// A run in a list of runs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunSummary {
    /// The name of its folder.
    pub name: String,
    /// Its state.
    pub state: RunState,
    /// The last recorded step.
    pub step: u64,
    /// The total number of steps; 0 if its configuration does not say.
    pub max_steps: u64,
    /// The base model.
    pub model: String,
    /// The training objective: `flow_matching` or `instruct_pix2pix`.
    pub objective: String,
    /// When it last recorded something, in seconds since 1970.
    pub updated: f64,
    /// The last training loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The last held-out loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// The duration of a step in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_per_step: Option<f64>,
    /// The estimated remaining time in seconds, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Host memory in use, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<f64>,
    /// GPU memory in use, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_mib: Option<f64>,
    /// The file name of the newest grid of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
}

/// A run with the contents of its folder.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunDetail {
    /// The fields of the list.
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
    /// The number of lines of its metrics that are not valid records.
    pub unreadable_lines: usize,
}

/// A checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CheckpointInfo {
    /// Optimizer steps done.
    pub step: u64,
    /// The size of all its files.
    pub bytes: u64,
    /// Its held-out loss, if it was measured.
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
    /// The step after which it was generated.
    pub step: u64,
}
