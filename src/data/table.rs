//! Parquet files: columns by name, rows by number, a few at a time.

use std::{fs::File, ops::Range, path::Path};

use parquet::{
    basic::Type,
    column::reader::ColumnReader,
    data_type::ByteArray,
    errors::ParquetError,
    file::{
        metadata::RowGroupMetaData,
        reader::{FileReader, SerializedFileReader},
    },
};

use super::manifest::{FileKind, kind_of};
use crate::{error::Error, notice::some_of, panics::guarded};

/// The Parquet files of a folder.
#[derive(Debug, Default)]
pub struct Tables {
    /// Those of the split `train` if there are any, else all.
    pub read: Vec<String>,
    /// The others.
    pub others: Vec<String>,
}

/// The Parquet files of `folder` and of its folder `data`, where Hugging Face keeps them.
///
/// # Errors
/// The folder cannot be read.
pub fn tables(folder: &Path) -> crate::error::Result<Tables> {
    let mut found = Vec::new();
    for below in ["", "data/"] {
        let folder = folder.join(below);
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
            let name = entry.map_err(|e| Error::io(&folder, e))?.file_name().to_string_lossy().into_owned();
            if kind_of(&name) == FileKind::Table && !name.starts_with('.') {
                found.push(format!("{below}{name}"));
            }
        }
    }
    found.sort_unstable();
    let of_train = |file: &String| file.trim_start_matches("data/").starts_with("train");
    let (train, others): (Vec<_>, Vec<_>) = found.into_iter().partition(of_train);
    Ok(if train.is_empty() { Tables { read: others, others: train } } else { Tables { read: train, others } })
}

/// An open Parquet file. Only its footer is in memory; reading moves its one file handle, so it is not shared by threads.
pub struct Table {
    file: SerializedFileReader<File>,
}

impl Table {
    /// Reads the footer of the file at `path`.
    ///
    /// # Errors
    /// One line that says why it cannot be read.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        let file = guarded(|| SerializedFileReader::new(file).map_err(|e| e.to_string()));
        let file = file.unwrap_or_else(Err).map_err(|e| format!("is not a Parquet file ({e})"))?;
        if !file.metadata().row_groups().iter().all(|group| lies_within(group, length)) {
            return Err("is damaged: its footer names places outside the file".into());
        }
        Ok(Self { file })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.file.metadata().row_groups().iter().map(|group| group.num_rows() as usize).sum()
    }

    /// Whether there is a column of texts, or of bytes, called `name`; a field of another column is `column.field`.
    pub fn has(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// A clause about the columns that are not among those `read` (a field counts for its column), if there are any.
    pub fn unread(&self, file: &str, read: &[&str]) -> Option<String> {
        let used: Vec<&str> = read.iter().map(|name| name.split('.').next().unwrap_or(name)).collect();
        let columns = self.file.metadata().file_metadata().schema().get_fields();
        let names: Vec<&str> = columns.iter().map(|column| column.name()).filter(|name| !used.contains(name)).collect();
        (!names.is_empty()).then(|| format!("columns of {file}: {} ({})", names.len(), some_of(&names)))
    }

    /// The first of the columns `names`, or of their `field` (such as `.bytes`), that there is.
    pub fn first(&self, names: &[&str], field: &str) -> Option<String> {
        names.iter().map(|name| format!("{name}{field}")).find(|name| self.has(name))
    }

    /// All cells of a column as texts; empty ones are empty texts.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn texts(&self, column: &str) -> Result<Vec<String>, String> {
        let cells = self.read(column, 0..self.rows())?.into_iter();
        let text = |cell: Option<ByteArray>| cell.as_ref().map_or(&[][..], |cell| cell.data()).to_vec();
        let text =
            |(row, cell)| String::from_utf8(text(cell)).map_err(|_| format!("row {row} of `{column}` is not UTF-8"));
        cells.enumerate().map(text).collect()
    }

    fn position(&self, name: &str) -> Option<usize> {
        let columns = self.file.metadata().file_metadata().schema_descr().columns();
        columns.iter().position(|column| {
            column.path().string() == name && column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0 // no list
        })
    }

    /// The cells of some rows of a column; `None` for empty ones.
    ///
    /// # Errors
    /// There is no such column, or one line that says why it cannot be read.
    pub fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<Option<ByteArray>>, String> {
        guarded(|| self.read_cells(name, rows)).unwrap_or_else(|problem| Err(format!("cannot be read ({problem})")))
    }

    fn read_cells(&self, name: &str, rows: Range<usize>) -> Result<Vec<Option<ByteArray>>, String> {
        let position = self.position(name).ok_or_else(|| format!("has no column `{name}`"))?;
        let mut cells = Vec::new();
        let mut first = 0;
        for (number, group) in self.file.metadata().row_groups().iter().enumerate() {
            let here = first..first + group.num_rows() as usize;
            let wanted = rows.start.max(here.start)..rows.end.min(here.end);
            if !wanted.is_empty() {
                let wanted = wanted.start - first..wanted.end - first;
                cells.extend(self.read_group(number, position, wanted).map_err(|e| readable(&e))?);
            }
            first = here.end;
        }
        if cells.len() == rows.len() { Ok(cells) } else { Err("has fewer rows than its footer says".into()) }
    }

    /// The cells of some rows of a row group. What lies before them is skipped page by page.
    fn read_group(
        &self,
        group: usize,
        column: usize,
        rows: Range<usize>,
    ) -> Result<Vec<Option<ByteArray>>, ParquetError> {
        let group = self.file.get_row_group(group)?;
        let filled = group.metadata().column(column).column_descr().max_def_level();
        let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(column)? else {
            return Err(ParquetError::General("is not a column of bytes".into()));
        };
        reader.skip_records(rows.start)?;
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        reader.read_records(rows.len(), Some(&mut levels), None, &mut values)?;
        let mut values = values.into_iter();
        if filled == 0 {
            return Ok(values.map(Some).collect()); // a required column has no levels
        }
        Ok(levels.iter().map(|&level| if level == filled { values.next() } else { None }).collect())
    }
}

/// Whether what a footer says of a row group can be true of a file of `length` bytes: the reader takes it for granted.
fn lies_within(group: &RowGroupMetaData, length: u64) -> bool {
    let place = |place: i64| u64::try_from(place).is_ok_and(|place| place <= length);
    let columns = group.columns().iter().all(|column| {
        let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let end = first.checked_add(column.compressed_size());
        place(first) && place(column.data_page_offset()) && place(column.compressed_size()) && end.is_some_and(place)
    });
    // A row takes no bytes if it is as the one before, but more of them than this are no pictures.
    columns && (0..=i64::from(i32::MAX)).contains(&group.num_rows())
}

fn readable(error: &ParquetError) -> String {
    let text = error.to_string();
    if text.contains("Disabled feature") {
        return format!("is compressed in a way that cannot be read ({text}): write it with snappy, gzip or without");
    }
    format!("cannot be read ({text})")
}
