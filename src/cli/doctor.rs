//! `kiln doctor`

use anyhow::Result;

use super::{Global, print};
use crate::doctor;

/// Reports what this machine has (CPU, memory, GPU and libraries, cached models, disk) and which device kiln would use
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(Args {}: Args, global: &Global) -> Result<()> {
    print(doctor::examine(global.kernel_cache(), global.cuda_paths.unwrap_or_default()))
}
