//! Views: the tensors of a part that lie in a file of another layout, under other names or as rows of larger tensors. A model folder
//! made for a single-file checkpoint has views instead of weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::read_json;
use crate::error::Result;

/// The name of the file that describes a view, in the folder of a part.
pub(crate) const VIEW: &str = "weights.view.json";

/// The locations of a part's tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartView {
    /// The safetensors or GGUF file.
    pub file: PathBuf,
    /// The location of each tensor, by its name in the part's own layout.
    pub tensors: BTreeMap<String, Elsewhere>,
}

/// The location of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Elsewhere {
    /// The name of the tensor in the file.
    pub name: String,
    /// The range of its rows; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<[usize; 2]>,
    /// Whether the two halves of these rows are swapped.
    #[serde(default)]
    pub swapped: bool,
    /// The resulting shape; for quantized tensors, that of the values.
    pub shape: Vec<usize>,
}

impl PartView {
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn read(path: &Path) -> Result<Self> {
        read_json(path)
    }
}
