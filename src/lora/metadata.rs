//! Metadata of exported adapter files: the keys that viewers and other programs read, without anything about the machine and the
//! folders of the author.

use std::{collections::BTreeMap, fs, path::Path};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The configuration of the run, as TOML.
pub const CONFIG: &str = "kiln.config";

/// The base model, as the configuration names it.
pub const BASE_MODEL: &str = "kiln.base_model";

/// Private keys of a configuration, with their tables: validation prompts and local folders.
const OWN: [(&str, &str); 4] =
    [("run", "output"), ("data", "cache"), ("validation", "prompts"), ("validation", "negative_prompt")];

/// The metadata of a run for a file to share: paths become names, and settings about local folders and validation prompts are
/// removed.
pub fn to_share(mut metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if let Some(base) = metadata.get_mut(BASE_MODEL) {
        *base = name_of(base);
    }
    if let Some(text) = metadata.remove(CONFIG)
        && let Ok(mut config) = text.parse::<toml::Table>()
    {
        for (table, key) in OWN {
            if let Some(table) = config.get_mut(table).and_then(toml::Value::as_table_mut) {
                table.remove(key);
            }
        }
        config.iter_mut().for_each(|(_, value)| shorten(value));
        metadata.insert(CONFIG.into(), config.to_string());
    }
    metadata
}

/// Replaces all paths in a value by names.
fn shorten(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => *text = name_of(text),
        toml::Value::Array(values) => values.iter_mut().for_each(shorten),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| shorten(value)),
        _ => {}
    }
}

/// The last part of a local path; other texts, and `org/name`, unchanged.
pub fn name_of(text: &str) -> String {
    let drive = text.as_bytes().get(1..3).is_some_and(|rest| rest[0] == b':' && matches!(rest[1], b'\\' | b'/'));
    let is_path = text.starts_with(['/', '~', '\\']) || drive || text.starts_with("./") || text.contains("../");
    let deep = !text.contains(char::is_whitespace) && !text.contains("://") && text.matches('/').count() > 1;
    if !(is_path || deep) {
        return text.into();
    }
    let parts = text.trim_end_matches(['/', '\\']).rsplit(['/', '\\']);
    parts.map(str::trim).find(|part| !part.is_empty() && !["~", ".", ".."].contains(part)).unwrap_or_default().into()
}

/// The hash of a file's tensors without its header (`sshs_model_hash` of kohya's scripts), in hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub(super) fn tensor_hash(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let length = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    let start = usize::try_from(length).ok().and_then(|length| length.checked_add(8)).unwrap_or(usize::MAX);
    let tensors = bytes.get(start..).unwrap_or_default();
    Ok(Sha256::digest(tensors).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names_and_other_texts_stay() {
        for (text, name) in [
            ("/home/jane.doe/models/flux", "flux"),
            ("~/models/flux/", "flux"),
            ("C:\\Users\\Jane\\flux", "flux"),
            ("../jane/flux", "flux"),
            ("home/jane/models/flux", "flux"),
            ("./flux", "flux"),
            ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
            ("a cat / a dog, and/or a bird", "a cat / a dog, and/or a bird"),
            ("cosine", "cosine"),
            ("", ""),
            ("/", ""),
        ] {
            assert_eq!(name_of(text), name, "{text}");
        }
    }

    #[test]
    fn a_configuration_to_share_names_no_folder_and_no_prompt() {
        let config = "[run]\nname = \"cats\"\noutput = \"/home/jane/runs\"\n[model]\npath = \"/home/jane/flux\"\n[data]\npath = \
                      \"/home/jane/cats\"\ncache = \"/home/jane/cache\"\nresolution = 64\n[validation]\nprompts = [\"secret\"]\n";
        let metadata = [(CONFIG, config), (BASE_MODEL, "/home/jane/flux"), ("kiln.version", "0.1.0")];
        let shared = to_share(metadata.map(|(key, value)| (key.to_string(), value.to_string())).into());
        let whole = format!("{shared:?}");
        assert!(!whole.contains("jane") && !whole.contains("secret"), "{whole}");
        let config: toml::Table = shared[CONFIG].parse().unwrap();
        assert_eq!(config["data"]["path"].as_str(), Some("cats"));
        assert_eq!((config["data"]["resolution"].as_integer(), shared[BASE_MODEL].as_str()), (Some(64), "flux"));
    }
}
