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
mod reference;
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
#[cfg(feature = "cluster")]
mod cluster;
mod hands;
mod running;
mod service;
#[cfg(feature = "cluster")]
mod worker;
#[cfg(feature = "cluster")]
mod feed;
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
use config::{ClusterConfig, ServeConfig};
use starts::Launch;

use crate::{
    error::Result,
    generation::{BatchReport, BatchRequest},
};
pub use info::{LoraInfo, MemoryStatus, ModelDefaults, ModelInfo, QueueStatus, StatusInfo};
pub use reference::{commented, reference};
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

/// Makes the images of the jobs in a queue until the process is asked to [stop](crate::stop). `ready` is told the worker's name as
/// soon as it takes jobs. Of `config`, what is about HTTP, keys, the page and folders of adapters is the server's alone.
///
/// # Errors
/// There is no queue, it or a model cannot be used, or its jobs are of another release or of other models of the same names.
pub fn work(config: ServeConfig, device: &Device, ready: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let cluster = config.cluster.clone().unwrap_or_default();
    cluster.check()?;
    #[cfg(feature = "cluster")]
    return worker::work(config, &cluster, device, ready);
    #[cfg(not(feature = "cluster"))]
    {
        _ = (device, ready);
        Ok(())
    }
}

/// Changes or edits all images of a folder as [`batch`](crate::generation::batch) does, by workers, who know the models by the names in
/// their configurations. What cannot be read or made is reported and left out.
///
/// # Errors
/// As `batch`; the queue or the store cannot be used, or the request has what workers do not take.
pub fn feed(request: &BatchRequest, cluster: &ClusterConfig) -> Result<BatchReport> {
    cluster.check()?;
    #[cfg(feature = "cluster")]
    return feed::feed(request, cluster);
    #[cfg(not(feature = "cluster"))]
    Ok(BatchReport::new(&request.folder, request.seed, &request.choices))
}
