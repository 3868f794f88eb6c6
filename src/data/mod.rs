//! From pictures and captions to training batches.

mod config;

pub use config::{CacheDtype, DataConfig};
