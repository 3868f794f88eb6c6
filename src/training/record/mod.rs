//! What a run leaves in its folder while it trains: numbers, curves, pictures, and how it was started.

pub(in crate::training) mod started;
pub(in crate::training) mod run_folder;
pub(in crate::training) mod grid;
mod tensorboard;
pub(in crate::training) mod metrics;
pub(in crate::training) mod interval;

pub use metrics::{Metrics, Record, StepMetrics, ValidationMetrics};
