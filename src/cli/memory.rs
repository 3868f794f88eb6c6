//! The memory options of every command that loads a model.

use anyhow::Result;

use super::{Global, print};
use crate::{
    generation::{self, GenerateRequest},
    memory::{Bytes, LevelChoice, MemoryConfig},
    training::stop_on_signals,
};

/// As [`MemoryConfig`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct MemoryArgs {
    /// Memory level: `none`, `balanced`, `aggressive` or `ultra`. Each needs less memory and more time than the one before, with
    /// the same results; `auto` takes the first that fits [default: auto]
    #[arg(long, value_name = "LEVEL")]
    memory: Option<LevelChoice>,
    /// Memory that `auto` may use, such as 8GiB [default: free memory minus 1GiB]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Bytes>,
}

impl MemoryArgs {
    /// The configuration, if any option is given.
    pub(super) fn given(self) -> Option<MemoryConfig> {
        let Self { memory, memory_limit: limit } = self;
        (memory.is_some() || limit.is_some()).then(|| MemoryConfig {
            level: memory.unwrap_or_default(),
            limit,
            ..MemoryConfig::default()
        })
    }
}

/// The same for a command that generates images, with `--dry-run`.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    memory: MemoryArgs,
    /// Check everything and print the memory plan, without generating
    #[arg(long)]
    dry_run: bool,
}

impl PlanArgs {
    /// The configuration, and whether only the plan is requested.
    pub(super) fn given(self) -> (MemoryConfig, bool) {
        (self.memory.given().unwrap_or_default(), self.dry_run)
    }

    /// Generates the images, and prints the files written.
    pub(super) fn make(self, request: GenerateRequest, global: &Global) -> Result<()> {
        let (memory, dry_run) = self.given();
        let request = GenerateRequest { memory, ..request };
        stop_on_signals()?;
        let device = global.open()?;
        match dry_run {
            true => print(generation::plan(&request, &device)?),
            false => generation::generate(&request, &device)?.iter().try_for_each(|file| print(file.display())),
        }
    }
}
