//! The record of a run in its folder: metrics, curves, images, and where it was started.

pub(in crate::training) mod started;
pub(in crate::training) mod run_folder;
pub(in crate::training) mod grid;
mod tensorboard;
pub(in crate::training) mod metrics;
pub(in crate::training) mod interval;

pub use metrics::{Metrics, Record, StepMetrics, ValidationMetrics};
