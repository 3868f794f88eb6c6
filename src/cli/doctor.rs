//! `kiln doctor`

use anyhow::Result;

use super::{Flags, Global, print};
use crate::doctor;

/// Reports what this machine has (CPU, memory, GPU and libraries, cached models, disk) and which device kiln would use
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(Args {}: Args, global: &Global) -> Result<()> {
    let report = doctor::examine(global.kernel_cache(), global.cuda_paths.unwrap_or_default());
    print(Flags::of("doctor").spell_all(&report.to_string()))
}
