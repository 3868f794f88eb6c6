//! Parquet files: columns by name, rows by number, a few at a time.

use std::{fs::File, ops::Range, path::Path};

use parquet::{
    basic::{ConvertedType, LogicalType, Type},
    column::reader::ColumnReader,
    data_type::ByteArray,
    errors::ParquetError,
    file::{
        metadata::RowGroupMetaData,
        reader::{FileReader, SerializedFileReader},
    },
};

use super::{
    Cell, Place,
    listing::Listing,
    manifest::{FileKind, kind_of, named},
};
use crate::{error::Error, notice::some_of, panics::guarded};

/// The Parquet files of a folder.
#[derive(Debug, Default)]
pub struct Tables {
    /// The files of the split `train` if there are any, else all.
    pub read: Vec<String>,
    /// The other files.
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

/// An open Parquet file. Only its footer is in memory; reading moves its single file handle, so threads do not share it.
pub struct Table {
    file: SerializedFileReader<File>,
}

impl Table {
    /// Reads the footer of the file at `path`.
    ///
    /// # Errors
    /// One line with the reason why it cannot be read.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        let file = guarded(|| SerializedFileReader::new(file).map_err(|e| e.to_string()));
        let file = file.unwrap_or_else(Err).map_err(|e| format!("is not a Parquet file ({e})"))?;
        if !file.metadata().row_groups().iter().all(|group| lies_within(group, length)) {
            return Err("is damaged: its footer points outside the file".into());
        }
        Ok(Self { file })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.file.metadata().row_groups().iter().map(|group| group.num_rows() as usize).sum()
    }

    /// Whether there is a column of texts, or of bytes, called `name`; a nested field is `column.field`.
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

    /// The first existing column of `names`, or of their `field` (such as `.bytes`).
    pub fn first(&self, names: &[&str], field: &str) -> Option<String> {
        names.iter().map(|name| format!("{name}{field}")).find(|name| self.has(name))
    }

    /// All cells of a column as texts; empty cells are empty texts.
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
    /// There is no such column, or one line with the reason why it cannot be read.
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

/// Whether a row group is plausible in a file of `length` bytes; the reader does not check the footer.
fn lies_within(group: &RowGroupMetaData, length: u64) -> bool {
    let place = |place: i64| u64::try_from(place).is_ok_and(|place| place <= length);
    let columns = group.columns().iter().all(|column| {
        let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let end = first.checked_add(column.compressed_size());
        place(first) && place(column.data_page_offset()) && place(column.compressed_size()) && end.is_some_and(place)
    });
    // Repeated rows take no bytes, but a table of images does not have this many of them.
    columns && (0..=i64::from(i32::MAX)).contains(&group.num_rows())
}

fn readable(error: &ParquetError) -> String {
    let text = error.to_string();
    if text.contains("Disabled feature") {
        return format!(
            "is compressed in a way that cannot be read ({text}): write it with zstd, snappy or gzip, or uncompressed"
        );
    }
    format!("cannot be read ({text})")
}

/// The columns of a table for one kind of image: bytes, paths of files, or for each row either.
#[derive(Debug)]
pub struct Images {
    /// `image.bytes`, or a plain column of bytes.
    bytes: Option<String>,
    /// `image.path`, or a plain column of text.
    path: Option<String>,
}

impl Images {
    /// The first of the columns `names` that a table has: structs of `bytes` and `path`, as Hugging Face writes them, or plain columns of
    /// either.
    pub fn of(table: &Table, names: &[&str]) -> Option<Self> {
        names.iter().find_map(|name| {
            let field = |field: &str| Some(format!("{name}.{field}")).filter(|column| table.has(column));
            let found = match table.has(name) {
                true if table.is_text(name) => Self { bytes: None, path: Some(name.to_string()) },
                true => Self { bytes: Some(name.to_string()), path: None },
                false => Self { bytes: field("bytes"), path: field("path") },
            };
            (found.bytes.is_some() || found.path.is_some()).then_some(found)
        })
    }

    /// The column that counts as read.
    pub fn column(&self) -> &str {
        self.bytes.as_deref().or(self.path.as_deref()).unwrap_or_default()
    }

    /// The location of the image of each row of the table `file`: its cell, or else the file that it names, which is looked up in the data
    /// folder and in the folder of the table; or the problem of that row.
    ///
    /// # Errors
    /// One clause: the column cannot be read.
    pub fn places(&self, table: &Table, file: &str, listing: &Listing) -> Result<Vec<Result<Place, String>>, String> {
        let rows = table.rows();
        let filled = self.bytes.as_ref().map_or_else(|| Ok(vec![false; rows]), |column| table.filled(column))?;
        let paths = match &self.path {
            Some(column) if !filled.iter().all(|filled| *filled) => table.texts(column)?,
            _ => vec![String::new(); rows],
        };
        let place = |(row, (filled, path)): (usize, (bool, String))| {
            if filled {
                let column = self.column().to_string();
                return Ok(Place { file: file.into(), cell: Some(Cell { row, column }) });
            }
            let problem = |problem: String| format!("{file} row {row} `{}`: {problem}", self.column());
            if path.is_empty() {
                return Err(problem("holds no image".into()));
            }
            let beside = file.rfind('/').map_or("", |end| &file[..=end]);
            let found = named(listing, "", &path).or_else(|problem| named(listing, beside, &path).map_err(|_| problem));
            found.map(Place::from).map_err(problem)
        };
        Ok(filled.into_iter().zip(paths).enumerate().map(place).collect())
    }
}

impl Table {
    /// Whether a column is marked as text.
    fn is_text(&self, name: &str) -> bool {
        self.position(name).is_some_and(|position| {
            let column = self.file.metadata().file_metadata().schema_descr().column(position);
            column.converted_type() == ConvertedType::UTF8 || column.logical_type_ref() == Some(&LogicalType::String)
        })
    }

    /// For each row whether the cell of a column is not empty; only read where the footer does not tell.
    fn filled(&self, name: &str) -> Result<Vec<bool>, String> {
        /// The number of rows that are read at once.
        const AT_ONCE: usize = 64;
        let position = self.position(name).ok_or_else(|| format!("has no column `{name}`"))?;
        let mut filled = Vec::with_capacity(self.rows());
        for group in self.file.metadata().row_groups() {
            let rows = group.num_rows() as usize;
            let nulls = group.column(position).statistics().and_then(|statistics| statistics.null_count_opt());
            match nulls {
                Some(0) => filled.extend(std::iter::repeat_n(true, rows)),
                Some(nulls) if nulls as usize == rows => filled.extend(std::iter::repeat_n(false, rows)),
                _ => {
                    let end = filled.len() + rows;
                    while filled.len() < end {
                        let next = filled.len()..end.min(filled.len() + AT_ONCE);
                        let cells = self.read(name, next)?;
                        filled
                            .extend(cells.iter().map(|cell| cell.as_ref().is_some_and(|cell| !cell.data().is_empty())));
                    }
                }
            }
        }
        Ok(filled)
    }
}
