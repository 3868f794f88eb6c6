//! The location of an image: a file, or a cell of a table.

use serde::{Deserialize, Serialize};

/// The location of an image: a file, or a cell of a Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The path of the file relative to the data folder, with `/` on every system.
    pub file: String,
    /// The cell, if it is a Parquet file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<Cell>,
}

/// A cell of a Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// The row, counted from 0 over the whole file.
    pub row: usize,
    /// The column.
    pub column: String,
}

impl From<String> for Place {
    fn from(file: String) -> Self {
        Self { file, cell: None }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cell {
            None => f.write_str(&self.file),
            Some(Cell { row, column }) => write!(f, "{} row {row} `{column}`", self.file),
        }
    }
}
