//! The training loop and what surrounds it.

mod bars;
pub mod config;
mod dashboard;
mod display;
mod metrics;
mod placeholder;
mod tensorboard;
mod terminal;

pub use config::{
    Activations, CheckpointConfig, Dtype, LoopConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, OptimizerName,
    RunConfig, Sampling, ScheduleConfig, ScheduleName, Shift, TrainConfig, ValidationConfig, Weighting,
};
pub use display::{Display, Ui, open_display};
pub use metrics::{Metrics, Record, StepMetrics, ValidationMetrics};
pub use placeholder::{ValidationReport, export, prepare, train, validate};
pub use terminal::{LogWriter, stop_on_signals};
