//! `kiln selftest`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Global, print, print_live};
use crate::{device::Hardware, selftest};

/// Checks that this machine computes the same as diffusers
///
/// Compares tiny models (forward, backward and training steps) with outputs of diffusers, and single kernels with the CPU, each
/// in f32 and bf16. The exit code is 1 if anything is outside its tolerance.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run only checks whose name contains this word: a model (`flux`), a part (`vae`), a kernel (`kernel attention`), a type (`bf16`)
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Folder of the tiny models and goldens, from kiln's source
    #[arg(long, value_name = "FOLDER", default_value = "tests/fixtures", value_parser = super::path())]
    goldens: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, global: &Global) -> Result<()> {
    let device = global.open()?;
    let name = Hardware::of(&device).name;
    let options = selftest::Options { goldens: args.goldens, only: args.only };
    let (mut header, mut printed) = (Some(selftest::Report::new(name.as_str())), Ok(()));
    let mut on_row = |row: &selftest::Row| {
        if !args.json && printed.is_ok() {
            printed = header.take().map_or(Ok(()), print_live).and_then(|()| print_live(row));
        }
    };
    let report = selftest::run(&options, &device, &name, &mut on_row).context("the self-test cannot be run")?;
    printed?;
    if args.json {
        print(serde_json::to_string_pretty(&report)?)?;
    }
    match report.failures() {
        0 => Ok(()),
        failures => bail!("{failures} of {} checks failed", report.rows.len()),
    }
}
