//! How much of the model is in device memory: options of every command that loads one.

use crate::memory::{Bytes, LevelChoice, MemoryConfig};

/// As [`MemoryConfig`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct MemoryArgs {
    /// Memory level: `none`, `balanced`, `aggressive`, `ultra`, each with less memory and more time; the images are the same
    #[arg(long, default_value = "auto", value_name = "LEVEL")]
    memory: LevelChoice,
    /// The most that `auto` may use, such as 8GiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Bytes>,
}

impl From<MemoryArgs> for MemoryConfig {
    fn from(MemoryArgs { memory, memory_limit }: MemoryArgs) -> Self {
        Self { level: memory, limit: memory_limit, ..Self::default() }
    }
}
