//! Reading the bytes of images from files and tables.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use parquet::data_type::ByteArray;

use super::{Cell, Place, table::Table};

/// The number of rows that are read from a table at once.
const WINDOW: usize = 32;
/// The number of windows in memory: threads that take rows in order are in a few of them, for each of two columns.
const WINDOWS: usize = 8;

/// The images of a data folder. Files are read whole. Cells of Parquet files are read a window at a time, so that only a few windows
/// are in memory, however long the file is; reading them in order is fast.
pub struct Source {
    folder: PathBuf,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    open: Option<(String, Table)>,
    windows: VecDeque<Window>,
}

struct Window {
    file: String,
    column: String,
    number: usize,
    cells: Vec<Option<ByteArray>>,
}

impl Source {
    /// The images of `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), tables: Mutex::default() }
    }

    /// The path of an image's file.
    pub fn path(&self, place: &Place) -> PathBuf {
        self.folder.join(&place.file)
    }

    /// The bytes of an image.
    ///
    /// # Errors
    /// One line that says why they cannot be read.
    pub fn read(&self, place: &Place) -> Result<Vec<u8>, String> {
        match &place.cell {
            None => std::fs::read(self.path(place)).map_err(|e| e.to_string()),
            Some(cell) => {
                // A thread that panicked left only complete windows.
                let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
                let bytes = tables.read(&self.path(place), &place.file, cell)?.ok_or("holds no image")?;
                drop(tables);
                Ok(bytes.data().to_vec())
            }
        }
    }
}

impl Tables {
    fn read(&mut self, path: &Path, file: &str, cell: &Cell) -> Result<Option<ByteArray>, String> {
        let (number, place) = (cell.row / WINDOW, cell.row % WINDOW);
        let is_wanted = |w: &Window| w.number == number && w.column == cell.column && w.file == file;
        if let Some(window) = self.windows.iter().find(|window| is_wanted(window)) {
            return Ok(window.cells.get(place).cloned().flatten());
        }
        if self.open.as_ref().is_none_or(|(name, _)| name != file) {
            self.open = Some((file.into(), Table::open(path)?));
        }
        let (_, table) = self.open.as_ref().expect("it was opened above");
        let first = number * WINDOW;
        let cells = table.read(&cell.column, first..(first + WINDOW).min(table.rows()).max(first))?;
        let bytes = cells.get(place).cloned().flatten();
        if self.windows.len() == WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(Window { file: file.into(), column: cell.column.clone(), number, cells });
        Ok(bytes)
    }
}
