//! `kiln worker`

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Global, print};
use crate::{
    error::Error,
    generation::BatchRequest,
    memory::MemoryConfig,
    serve::{
        self,
        config::{ClusterConfig, ServeConfig},
    },
    training::stop_on_signals,
};

/// Makes the images of a server on another machine: takes its jobs from a NATS queue, and prints its own name when it is ready
///
/// Any number of workers share the jobs; one that dies loses none of them. Reads the models and limits of the server's configuration;
/// the models must be the same. Ctrl-c or SIGTERM stops it within 30 seconds: it finishes its jobs or gives them back. Needs a build
/// with the feature `cluster`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file of the server (TOML)
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    config: PathBuf,
    /// Override one value of the configuration, such as `limits.rows=4`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    queue: QueueArgs,
}

/// The options for queue and store of several machines.
#[derive(Debug, clap::Args)]
pub(super) struct QueueArgs {
    /// NATS server with JetStream that holds the jobs for workers, `nats://HOST:PORT` or `tls://HOST:PORT`; overrides
    /// `cluster.queue` (feature `cluster`)
    #[arg(long, value_name = "URL")]
    pub queue: Option<String>,
    /// Folder that all machines see, or `s3://BUCKET/PREFIX`, through which images and adapters go; overrides `cluster.store`
    #[arg(long, value_name = "FOLDER")]
    pub store: Option<String>,
}

impl QueueArgs {
    /// Overrides what a configuration says; none if neither says anything.
    pub(super) fn over(self, configured: Option<ClusterConfig>) -> Option<ClusterConfig> {
        if configured.is_none() && self.queue.is_none() && self.store.is_none() {
            return None;
        }
        let cluster = configured.unwrap_or_default();
        let (queue, store) = (self.queue.unwrap_or(cluster.queue), self.store.unwrap_or(cluster.store));
        Some(ClusterConfig { queue, store, ..cluster })
    }
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let mut config = ServeConfig::load(&args.config, &args.set).context("the configuration cannot be used")?;
    config.cluster = args.queue.over(config.cluster.take());
    stop_on_signals()?;
    let ready = |name: &str| print(name).map_err(|e| Error::setting("worker", e.to_string()));
    Ok(serve::work(config, &global.open()?, ready)?)
}

/// `kiln batch` with a queue.
pub(super) fn feed(request: &BatchRequest, cluster: &ClusterConfig, dry_run: bool) -> Result<()> {
    if dry_run || request.memory != MemoryConfig::default() {
        let problem = "workers plan their own memory: leave out `memory`, `memory_limit` and `dry_run`";
        return Err(Error::setting("queue", problem).into());
    }
    print(serve::feed(request, cluster).context("not all images were processed")?)
}
