//! `kiln serve`

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};

use super::{Global, print, worker::QueueArgs};
use crate::{
    error::Error,
    serve::{self, config::ServeConfig},
    training::stop_on_signals,
};

/// Serves models and any number of LoRAs over HTTP and prints the address it listens on
///
/// Speaks OpenAI's image API, the subset of AUTOMATIC1111's API that its clients call, and its own; `/openapi.json` describes all
/// three. Ctrl-c or SIGTERM stops it within 30 seconds: running jobs finish, queued ones run after the next start.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file: models, LoRA folders, keys, limits (TOML)
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    config: PathBuf,
    /// Override one value of the configuration, such as `limits.queue=8`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Address to listen on, overriding the configuration; any but loopback needs keys
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Port to listen on, overriding the configuration; 0 picks a free one
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let mut config = ServeConfig::load(&args.config, &args.set).context("the configuration cannot be used")?;
    config.host = args.host.unwrap_or(config.host);
    config.port = args.port.unwrap_or(config.port);
    config.cluster = args.queue.over(config.cluster.take());
    config.check()?;
    stop_on_signals()?;
    let ready = |address| print(format_args!("http://{address}")).map_err(|e| Error::setting("server", e.to_string()));
    Ok(serve::serve(config, &global.open()?, super::train::process(global), ready)?)
}
