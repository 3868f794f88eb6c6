//! `kiln serve`

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};

use super::{Global, print};
use crate::{
    error::Error,
    serve::{self, config::ServeConfig},
    training::stop_on_signals,
};

/// Serves models and any number of LoRAs over HTTP, and prints the address that it listens at
///
/// It speaks OpenAI's image API, as much of AUTOMATIC1111's as its clients call, and one of its own; `/openapi.json` describes all
/// three. Ctrl-c or SIGTERM stops it within 30 seconds: running jobs are finished, and those that wait are done after the next start.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is served, to whom, and how much of it (TOML)
    #[arg(long, value_name = "FILE", value_parser = super::path())]
    config: PathBuf,
    /// Replaces one value of the configuration, such as `limits.queue=8`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Address to listen at, in place of the configuration's; all but loopback need keys
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Port to listen at, in place of the configuration's; 0 takes a free one
    #[arg(long)]
    port: Option<u16>,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let mut config = ServeConfig::load(&args.config, &args.set).context("the configuration cannot be used")?;
    config.host = args.host.unwrap_or(config.host);
    config.port = args.port.unwrap_or(config.port);
    stop_on_signals()?;
    let ready = |address| print(format_args!("http://{address}")).map_err(|e| Error::setting("server", e.to_string()));
    Ok(serve::serve(config, &global.open()?, ready)?)
}
