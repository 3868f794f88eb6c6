//! `kiln config`: a configuration to start from.

use anyhow::Result;

use super::print;
use crate::error::Error;

/// Prints a commented configuration to start from, or the list of them
///
/// Save it as a file and edit it: `kiln config flux_lora_12gb > run.toml`, then `kiln train --config run.toml`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the configuration [default: print the list]
    name: Option<String>,
}

/// The shipped configurations by their names.
const SHIPPED: [(&str, &str); 10] = [
    ("quickstart", include_str!("../../configs/quickstart.toml")),
    ("quickstart_edit", include_str!("../../configs/quickstart_edit.toml")),
    ("flux_lora", include_str!("../../configs/flux_lora.toml")),
    ("flux_lora_8gb", include_str!("../../configs/flux_lora_8gb.toml")),
    ("flux_lora_12gb", include_str!("../../configs/flux_lora_12gb.toml")),
    ("flux_lora_16gb", include_str!("../../configs/flux_lora_16gb.toml")),
    ("flux_lora_48gb", include_str!("../../configs/flux_lora_48gb.toml")),
    ("flux_lora_80gb", include_str!("../../configs/flux_lora_80gb.toml")),
    ("instruct_pix2pix", include_str!("../../configs/instruct_pix2pix.toml")),
    ("serve", include_str!("../../configs/serve.toml")),
];

pub(super) fn run(args: Args) -> Result<()> {
    let Some(name) = args.name else {
        let line = |(name, text): &(&str, &str)| {
            let about = text.lines().next().unwrap_or_default().trim_start_matches("# ");
            format!("{name:18} {about}")
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
