//! Training: the loop, its configuration, checkpoints, metrics, validation and export.
//!
//! A run folder `checkpoints/NAME/` holds `config.toml` (every value, resolved), `metrics.jsonl`, `tensorboard/`, `samples/`,
//! checkpoints `step-NNNNNN/`, and at the end an export for other programs: `NAME.safetensors`, a LoRA, or `model/`, a full model.

// As in `lib.rs`: each imports only from those above it.
mod config;
mod curve;
pub mod objective;
pub mod step;
mod record;
mod display;
mod plan;
mod prepare;
mod dry_run;
mod origin;
mod origin_metadata;
mod checkpoint;
mod run_config;
mod resume;
mod export;
mod task;
mod held_out_loss;
mod tasks;
mod run;
mod validate;

pub use checkpoint::Checkpoint;
pub use config::{
    Activations, CheckpointConfig, FlowMatchingConfig, InstructPix2PixConfig, LoopConfig, Mode, ModelConfig, ModelInit,
    ObjectiveConfig, OptimizerConfig, OptimizerName, RunConfig, Sampling, ScheduleConfig, ScheduleName, Shift,
    TrainConfig, ValidationConfig, Weighting, commented, reference,
};
pub use curve::{CurvePoint, EditCurve};
pub use display::{
    Display, LogWriter, STOPPED, Silent, Ui, has_colours, is_gone, open_display, print_error, stop_on_signals,
};
pub use dry_run::{DryRun, dry_run};
pub use export::{ExportOptions, export};
pub use origin::Origin;
pub use prepare::prepare;
pub use record::{Metrics, Record, StepMetrics, ValidationMetrics};
pub use run::train;
pub use run_config::run_config;
pub use step::{Ema, backward, optimizer};
pub use validate::{CheckpointScore, ValidationReport, validate};

/// The resolved configuration in a run folder.
const CONFIG: &str = "config.toml";
