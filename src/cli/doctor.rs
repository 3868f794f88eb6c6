//! `kiln doctor`

use anyhow::Result;

use super::{Global, print};
use crate::doctor;

/// Says what this machine has (processor, memory, GPU and its libraries, models, disk), and what kiln would use
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(Args {}: Args, global: &Global) -> Result<()> {
    print(doctor::examine(global.kernel_cache(), global.cuda_paths.unwrap_or_default()))
}
