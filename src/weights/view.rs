//! Tensors of a part of a model that lie in a file of another layout, under other names or as rows of larger ones: what a model
//! folder has in place of weights where they are in a single file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::read_json;
use crate::error::Result;

/// The name of such a file in the folder of a part.
pub(crate) const VIEW: &str = "weights.view.json";

/// Where the tensors of a part are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartView {
    /// The safetensors or GGUF file.
    pub file: PathBuf,
    /// By the names that the part's own layout has.
    pub tensors: BTreeMap<String, Elsewhere>,
}

/// Where one tensor is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Elsewhere {
    /// The tensor of the file.
    pub name: String,
    /// Its rows that are meant, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<[usize; 2]>,
    /// Whether the two halves of these change places.
    #[serde(default)]
    pub swapped: bool,
    /// The shape that results, of values where they are quantized.
    pub shape: Vec<usize>,
}

impl PartView {
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        read_json(path)
    }
}
