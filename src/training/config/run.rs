//! `[run]`: the name, seed and folder of a run.

use std::path::PathBuf;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Rule;

/// The longest name of a run, in bytes; files named after it add extensions.
const LONGEST_NAME: usize = 200;

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run and of its folder below `output`; also the name inside the exported LoRA. No default.
    pub name: String,
    /// Seed of everything random (noise, noise levels, order, dropout, initial adapter): equal seeds give equal runs.
    /// Default 0. Change it to see how much of a result is luck.
    #[serde(default)]
    pub seed: u64,
    /// Folder that holds the run folders. Default `checkpoints`.
    #[serde(default = "checkpoints")]
    pub output: PathBuf,
}

pub(super) fn checkpoints() -> PathBuf {
    "checkpoints".into()
}

impl RunConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let is_one_word = !self.name.contains(['/', '\\']) && !matches!(self.name.trim(), "" | "." | "..");
        let fits = self.name.len() <= LONGEST_NAME && !self.name.chars().any(char::is_control);
        vec![
            (is_one_word, "run.name", "must be the name of a folder, without `/`"),
            (fits, "run.name", "must have at most 200 bytes and no control characters"),
        ]
    }
}
