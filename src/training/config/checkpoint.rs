//! `[checkpoint]`: when checkpoints are written, and how many are kept.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints (trained parameters, optimizer, position). Default 250. The last step is always saved.
    pub every: u64,
    /// How many of the newest checkpoints to keep; 0 keeps all. Default 3. Older ones are deleted only after a newer one is
    /// complete.
    pub keep_last: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 250, keep_last: 3 }
    }
}
