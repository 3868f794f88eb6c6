//! `kiln serve`: jobs over HTTP, on models that stay loaded.
//!
//! ```text
//! HTTP ─► Service ─► journal ─► queue ─► engine ─► results
//! ```
//!
//! One thread, the engine, owns the device and the sessions; nothing else touches a tensor. All other code holds a [`Service`]: it
//! accepts jobs, which are in the journal before the caller is told, and reports on them.
//!
//! The engine advances all running images together, each at its own step and with its own adapters. Images join and leave between
//! two steps.

pub mod config;
pub mod job;
mod info;
mod refusal;
mod record;
mod sanity;
mod preview;
mod numbers;
mod results;
mod journal;
mod models;
mod adapters;
mod queue;
mod restart;
mod shared;
mod work;
mod loads;
mod engine;
mod running;
mod service;
// The page: votes between images, training runs, datasets.
pub mod rating;
pub mod standing;
pub mod votes;
pub mod run;
pub mod run_metrics;
pub mod runs;
pub mod starts;
pub mod caption;
pub mod datasets;
pub mod replacement;
pub mod thumbnails;
pub mod page;
mod http;

use std::net::SocketAddr;

use burn::tensor::Device;
use config::ServeConfig;
use starts::Launch;

use crate::error::Result;
pub use info::{LoraInfo, MemoryStatus, ModelDefaults, ModelInfo, QueueStatus, StatusInfo};
pub use refusal::{Accepted, CancelOutcome, Missing, Refusal};
pub use service::Service;

/// Serves until the process is asked to [stop](crate::stop). `launch` creates the processes of runs that are started from the page;
/// `ready` is called with the address as soon as requests are answered there.
///
/// # Errors
/// The address cannot be bound, or is open to other machines without keys; or as [`Service::start`].
pub fn serve(
    config: ServeConfig,
    device: &Device,
    launch: Launch,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let front = http::Front::open(&config)?;
    front.serve(Service::start(config, device)?, launch, ready)
}
