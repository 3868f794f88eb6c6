//! The rows of `metadata.jsonl` and `metadata.csv`.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::error::{Error, Result};

/// One row: its columns of text.
#[derive(Debug)]
pub struct Record {
    /// The file and the line.
    pub place: String,
    columns: BTreeMap<String, String>,
}

impl Record {
    /// The text of the first of the columns `names` that the row has.
    pub fn column(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|&name| self.columns.get(name)).map(String::as_str)
    }
}

/// The rows of the metadata file of `folder`, or what is wrong with each, in the order of the file; `None` if it has no such
/// file.
///
/// # Errors
/// The file cannot be read or is not CSV, or there are two.
pub fn records(folder: &Path) -> Result<Option<Vec<std::result::Result<Record, String>>>> {
    let (jsonl, csv) = (folder.join("metadata.jsonl"), folder.join("metadata.csv"));
    Ok(match (jsonl.is_file(), csv.is_file()) {
        (true, true) => Some(vec![Err("metadata.csv: there is a metadata.jsonl too: keep one of them".into())]),
        (true, false) => Some(jsonl_records(&jsonl)?),
        (false, true) => Some(csv_records(&csv)?),
        (false, false) => None,
    })
}

fn jsonl_records(path: &Path) -> Result<Vec<std::result::Result<Record, String>>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line): (usize, &str)| {
        let place = format!("metadata.jsonl line {number}");
        let values: BTreeMap<String, Value> = serde_json::from_str(line.trim_start_matches('\u{feff}'))
            .map_err(|e| format!("{place}: is not JSON ({e})"))?;
        let texts = values.into_iter().filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, text)),
            _ => None,
        });
        Ok(Record { place, columns: texts.collect() })
    };
    Ok(lines.map(record).collect())
}

fn csv_records(path: &Path) -> Result<Vec<std::result::Result<Record, String>>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let not_csv = |e: csv::Error| Error::file(path, e.to_string());
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let header = reader.headers().map_err(not_csv)?.clone();
    let record = |record: std::result::Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(not_csv)?;
        let place = format!("metadata.csv line {}", record.position().map_or(0, |p| p.line()));
        // Backwards, so that the first of two columns of one name counts.
        let cells: Vec<_> = header.iter().zip(&record).collect();
        let columns = cells.into_iter().rev().map(|(name, text)| (name.trim().to_string(), text.to_string()));
        Ok(Ok(Record { place, columns: columns.collect() }))
    };
    reader.records().map(record).collect()
}
