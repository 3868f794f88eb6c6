//! `kiln config`: a configuration to start from.

use anyhow::Result;

use super::print;
use crate::{error::Error, families::ObjectiveKind, serve, training};

/// Prints a commented configuration to start from, or the list of them
///
/// Save it as a file and edit it: `kiln config flux_lora_12gb > run.toml`, then `kiln train --config run.toml`. `--task` and
/// `--serve` print every key with its documentation and default instead.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the configuration [default: print the list]
    name: Option<String>,
    /// Print every key of a training with this `objective.kind`: `flow_matching` (FLUX.1) or `instruct_pix2pix` (Stable Diffusion)
    #[arg(long, value_name = "KIND", conflicts_with = "name")]
    task: Option<ObjectiveKind>,
    /// Print every key of `kiln serve` and `kiln worker`
    #[arg(long, conflicts_with_all = ["name", "task"])]
    serve: bool,
}

/// Files of `configs/` by their names.
macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../../configs/", $name, ".toml")))),+] };
}

/// The shipped configurations by their names; a test holds that none is missing.
const SHIPPED: [(&str, &str); 13] = files![
    "quickstart",
    "quickstart_edit",
    "flux_lora",
    "flux_lora_8gb",
    "flux_lora_12gb",
    "flux_lora_16gb",
    "flux_lora_48gb",
    "flux_lora_80gb",
    "instruct_pix2pix",
    "instruct_pix2pix_8gb",
    "instruct_pix2pix_12gb",
    "instruct_pix2pix_24gb",
    "serve",
];

pub(super) fn run(args: Args) -> Result<()> {
    if let Some(kind) = args.task {
        return print(training::commented(kind));
    }
    if args.serve {
        return print(serve::commented());
    }
    let Some(name) = args.name else {
        let line = |(name, text): &(&str, &str)| {
            let about = text.lines().next().unwrap_or_default().trim_start_matches("# ");
            format!("{name:22} {about}")
        };
        return print(SHIPPED.iter().map(line).collect::<Vec<_>>().join("\n"));
    };
    match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
        Some((_, text)) => print(text.trim_end()),
        None => {
            let error = Error::setting("name", format!("there is no configuration called `{name}`"));
            Err(error.hint("`kiln config` lists them").into())
        }
    }
}
