//! The rows of `metadata.jsonl` and `metadata.csv`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use super::text_file::read_text;
use crate::{
    error::{Error, Result},
    notice::some_of,
};

/// A row.
#[derive(Debug)]
pub struct Record {
    /// The file and the line.
    pub place: String,
    columns: BTreeMap<String, Value>,
}

/// The values by column.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.columns == other.columns
    }
}

impl Record {
    /// The text in the first of the columns `names` that the row has; a JSON `null` counts as no column.
    ///
    /// # Errors
    /// One clause: it holds something other than text.
    pub fn text(&self, names: &[&str]) -> std::result::Result<Option<&str>, String> {
        Ok(self.cell(names)?.map(|(_, text)| text))
    }

    /// The same with the name of the column.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn cell(&self, names: &[&str]) -> std::result::Result<Option<(&str, &str)>, String> {
        let found =
            names.iter().find_map(|name| self.columns.get_key_value(*name).filter(|(_, value)| !value.is_null()));
        match found {
            None => Ok(None),
            Some((name, Value::String(text))) => Ok(Some((name, text))),
            Some((name, value)) => {
                let kind = match value {
                    Value::Array(_) => "a list",
                    Value::Object(_) => "an object",
                    _ => "no text",
                };
                Err(format!("`{name}` is {kind}: write text in quotes"))
            }
        }
    }

    /// Whether all columns but this one are equal.
    pub fn differs_only_in(&self, other: &Self, column: &str) -> bool {
        let others = |record: &Self| -> Vec<_> {
            record.columns.iter().filter(|(name, _)| *name != column).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        others(self) == others(other)
    }
}

/// The rows of one metadata file, or their problems, in the order of the file.
#[derive(Debug, Default)]
pub struct Records {
    /// Its path relative to the data folder.
    pub file: String,
    /// One for each row.
    pub rows: Vec<std::result::Result<Record, String>>,
}

impl Records {
    /// A clause about the columns that are not among those `read`, if there are any. The first column of each list that a row has counts.
    pub fn unread(&self, read: &[&[&str]]) -> Option<String> {
        let mut unread = BTreeSet::new();
        for record in self.rows.iter().flatten() {
            let has = |name: &&str| record.columns.get(*name).is_some_and(|value| !value.is_null());
            let used: Vec<&str> = read.iter().filter_map(|names| names.iter().copied().find(has)).collect();
            let filled = record.columns.iter().filter(|(_, value)| !value.is_null());
            unread.extend(filled.map(|(name, _)| name.as_str()).filter(|name| !used.contains(name)));
        }
        let names: Vec<&str> = unread.into_iter().collect();
        (!names.is_empty()).then(|| format!("columns of {}: {} ({})", self.file, names.len(), some_of(&names)))
    }
}

/// Whether a file is a metadata file, by its name.
pub fn is_metadata(file: &str) -> bool {
    ["metadata.jsonl", "metadata.csv"].contains(&file.rsplit('/').next().unwrap_or(file))
}

/// The rows of the metadata file in the sub-folder `below` (empty, or ending in `/`) of `folder`; `None` if it has no such file.
///
/// # Errors
/// The file cannot be read or is not CSV.
pub fn records(folder: &Path, below: &str) -> Result<Option<Records>> {
    let [jsonl, csv] = ["metadata.jsonl", "metadata.csv"].map(|name| format!("{below}{name}"));
    let rows = match (folder.join(&jsonl).is_file(), folder.join(&csv).is_file()) {
        (true, true) => vec![Err(format!("{csv}: there is a metadata.jsonl too: keep one of them"))],
        (true, false) => jsonl_records(&read(&folder.join(&jsonl))?, &jsonl),
        (false, true) => csv_records(&folder.join(&csv), &read(&folder.join(&csv))?, &csv)?,
        (false, false) => return Ok(None),
    };
    Ok(Some(Records { file: if folder.join(&jsonl).is_file() { jsonl } else { csv }, rows }))
}

fn read(path: &Path) -> Result<String> {
    read_text(path).map_err(|problem| Error::file(path, problem))
}

/// The rows in the text of a metadata file.
///
/// # Errors
/// The name says CSV, and it is not.
pub fn rows_of(path: &Path, text: &str) -> Result<Vec<std::result::Result<Record, String>>> {
    match path.extension().is_some_and(|extension| extension == "csv") {
        true => csv_records(path, text, ""),
        false => Ok(jsonl_records(text, "")),
    }
}

fn jsonl_records(text: &str, name: &str) -> Vec<std::result::Result<Record, String>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line): (usize, &str)| {
        let place = format!("{name} line {number}");
        let columns = serde_json::from_str(line.trim_start_matches('\u{feff}'))
            .map_err(|e| format!("{place}: is not JSON ({e})"))?;
        Ok(Record { place, columns })
    };
    lines.map(record).collect()
}

fn csv_records(path: &Path, text: &str, name: &str) -> Result<Vec<std::result::Result<Record, String>>> {
    let not_csv = |e: csv::Error| Error::file(path, e.to_string());
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let header = reader.headers().map_err(not_csv)?.clone();
    let header: Vec<String> = header.iter().map(|name| name.trim().to_string()).collect();
    if let Some(twice) = header.iter().enumerate().find(|(i, name)| header[..*i].contains(name)) {
        return Err(Error::file(path, format!("two columns are called `{}`: rename or remove one of them", twice.1)));
    }
    let record = |record: std::result::Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(not_csv)?;
        let place = format!("{name} line {}", record.position().map_or(0, |p| p.line()));
        if record.len() > header.len() {
            let (fields, headings) = (record.len(), header.len());
            return Ok(Err(format!(
                "{place}: has {fields} fields under {headings} headings: put a text with a comma in double quotes"
            )));
        }
        let cells = header.iter().cloned().zip(record.iter().map(Value::from));
        Ok(Ok(Record { place, columns: cells.collect() }))
    };
    reader.records().map(record).collect()
}
