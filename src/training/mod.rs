//! The training loop and what surrounds it.
//!
//! A run folder `checkpoints/NAME/` holds `config.toml` (every value, resolved), `metrics.jsonl`, `tensorboard/`, `samples/`,
//! checkpoints `step-NNNNNN/`, and at the end what other programs load: `NAME.safetensors`, a LoRA, or `model/`, a whole model.

pub mod backward;
mod bars;
mod checkpoint;
mod config;
mod curve;
mod dashboard;
mod display;
mod dry_run;
mod edit;
mod ema;
mod export;
mod flux;
mod grid;
mod interval;
mod metrics;
mod plan;
pub mod objective;
pub mod optimizer;
mod origin_metadata;
mod prepare;
mod report;
mod resume;
mod run;
mod run_config;
mod run_folder;
mod schedule;
mod signals;
mod started;
mod state_file;
pub mod step;
mod task;
mod tensorboard;
mod terminal;
mod trained;
mod validation;

pub use checkpoint::Checkpoint;
pub use config::{
    Activations, CheckpointConfig, FlowMatchingConfig, InstructPix2PixConfig, LoopConfig, Mode, ModelConfig, ModelInit,
    ObjectiveConfig, OptimizerConfig, OptimizerName, RunConfig, Sampling, ScheduleConfig, ScheduleName, Shift,
    TrainConfig, ValidationConfig, Weighting,
};
pub use curve::{CurvePoint, EditCurve};
pub use display::{Display, Silent, Ui, open_display};
pub use dry_run::{DryRun, dry_run};
pub use ema::Ema;
pub use export::{ExportOptions, export};
pub use metrics::{Metrics, Record, StepMetrics, ValidationMetrics};
pub use prepare::prepare;
pub use report::{CheckpointScore, ValidationReport, validate};
pub use resume::Origin;
pub use run::train;
pub use run_config::run_config;
pub use signals::{STOPPED, stop_on_signals};
pub use terminal::{LogWriter, has_colours, is_gone, print_error};

/// The resolved configuration in a run folder.
const CONFIG: &str = "config.toml";
