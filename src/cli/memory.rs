//! How much of the model is in device memory: options of every command that loads one.

use crate::memory::{Bytes, LevelChoice, MemoryConfig};

/// As [`MemoryConfig`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct MemoryArgs {
    /// `none`, `balanced`, `aggressive` or `ultra`, each with less memory and more time than the one before and the same results; or
    /// `auto`, the first that fits [default: auto]
    #[arg(long, value_name = "LEVEL")]
    memory: Option<LevelChoice>,
    /// The most that `auto` may use, such as 8GiB [default: what is free, less 1GiB]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Bytes>,
}

impl MemoryArgs {
    /// The configuration, if anything was given.
    pub(super) fn given(self) -> Option<MemoryConfig> {
        let Self { memory, memory_limit: limit } = self;
        (memory.is_some() || limit.is_some()).then(|| MemoryConfig {
            level: memory.unwrap_or_default(),
            limit,
            ..MemoryConfig::default()
        })
    }
}
