//! Edits, as a data folder holds them: pairs of pictures, and the instructions that turn the first into the second.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    Cell, Place,
    manifest::{FileKind, Manifest, Row, clean, files_below, kind_of, relative},
    metadata::{Record, records},
    table::Table,
};
use crate::error::{Error, Result};

// The columns of metadata and Parquet files; of several, the first counts. Besides our own names these are those of
// diffusers' train_instruct_pix2pix.py and of the public sets of edits.
const ORIGINAL: &[&str] =
    &["original", "original_image", "input_image", "source_image", "source_img", "input", "source"];
const EDITED: &[&str] = &["edited", "edited_image", "output_image", "target_image", "target_img", "output", "target"];
const INSTRUCTION: &[&str] = &["instruction", "edit_prompt", "edit_instruction", "edit", "prompt", "text"];
const ORIGINAL_CAPTION: &[&str] =
    &["original_caption", "original_prompt", "source_caption", "source_prompt", "input_caption", "input_prompt"];
const EDITED_CAPTION: &[&str] =
    &["edited_caption", "edited_prompt", "target_caption", "target_prompt", "output_caption", "output_prompt"];

impl Manifest {
    /// Reads `metadata.jsonl` or `metadata.csv` if the folder has one, else its folders `original` and `edited`, else its
    /// Parquet files, and those in its folder `data`.
    ///
    /// # Errors
    /// The folder, or its metadata file, cannot be read.
    pub(super) fn read_edits(&mut self, folder: &Path) -> Result<()> {
        let pairs = ["original", "edited"].map(|name| folder.join(name).is_dir());
        let tables = tables(folder)?;
        match records(folder)? {
            Some(records) => {
                let mut seen = BTreeSet::new();
                for record in records {
                    match record {
                        Ok(record) => self.add_edit(folder, &record, &mut seen),
                        Err(problem) => self.problems.push(problem),
                    }
                }
            }
            None if pairs != [false; 2] && !tables.is_empty() => {
                self.problem(&tables[0], "there are folders of pictures too: keep one of them");
            }
            None if pairs == [true; 2] => self.pair(folder)?,
            None if pairs != [false; 2] => {
                let (there, missing) = if pairs[0] { ("original", "edited") } else { ("edited", "original") };
                self.problem(format!("{there}/"), format!("there is no folder {missing}/ beside it"));
            }
            None => tables.iter().for_each(|file| self.read_table(folder, file)),
        }
        if self.rows.is_empty() && self.problems.is_empty() {
            self.problems.push(
                "there are no edits: neither rows in a metadata.jsonl or metadata.csv, nor pictures in folders original/ \
                 and edited/, nor .parquet files with rows"
                    .into(),
            );
        }
        Ok(())
    }

    /// The edit of a row of a metadata file.
    fn add_edit(&mut self, folder: &Path, record: &Record, seen: &mut BTreeSet<[String; 3]>) {
        let found = [("original", ORIGINAL), ("edited", EDITED)].map(|(what, names)| {
            picture(folder, record, names).map_err(|problem| format!("{}, {what} picture: {problem}", record.place))
        });
        let problems: Vec<String> = found.iter().filter_map(|found| found.clone().err()).collect();
        let [Ok(original), Ok(edited)] = found else { return self.problems.extend(problems) };
        let place = format!("{}, {edited}", record.place);
        let Some(instruction) = record.column(INSTRUCTION).map(clean) else {
            return self.problem(place, format!("has no instruction ({})", columns(INSTRUCTION)));
        };
        if !seen.insert([original.clone(), edited.clone(), instruction.clone()]) {
            return self.problem(place, "is listed twice with the same original and instruction");
        }
        let caption = |names| record.column(names).map(clean).filter(|caption| !caption.is_empty());
        self.add_instructed(
            place,
            Row {
                original_caption: caption(ORIGINAL_CAPTION),
                edited_caption: caption(EDITED_CAPTION),
                ..Row::new(edited.into(), Some(original.into()), &instruction)
            },
        );
    }

    fn add_instructed(&mut self, place: impl std::fmt::Display, row: Row) {
        if row.caption.is_empty() {
            return self.problem(place, "its instruction is empty: write one, or take the edit out");
        }
        self.rows.push(row);
    }

    /// Pictures of the same name, but for the extension, in the folders `original` and `edited`, and the `.txt` file of that
    /// name in `edited`, `original` or `instruction`.
    fn pair(&mut self, folder: &Path) -> Result<()> {
        let [originals, edits] = [self.pictures(folder, "original")?, self.pictures(folder, "edited")?];
        for (name, original) in &originals {
            if !edits.contains_key(name) {
                self.problem(original, format!("there is no picture edited/{name} of any extension"));
            }
        }
        for (name, edited) in edits {
            let Some(original) = originals.get(&name) else {
                self.problem(edited, format!("there is no picture original/{name} of any extension"));
                continue;
            };
            let mut texts =
                ["edited", "original", "instruction"].map(|place| format!("{place}/{name}.txt")).into_iter();
            let Some(text) = texts.find(|text| folder.join(text).is_file()) else {
                self.problem(
                    edited,
                    format!("there is no instruction edited/{name}.txt (nor in original/, instruction/)"),
                );
                continue;
            };
            match std::fs::read_to_string(folder.join(&text)) {
                Ok(instruction) => {
                    self.add_instructed(text, Row::new(edited.into(), Some(original.clone().into()), &instruction))
                }
                Err(e) => self.problem(text, e),
            }
        }
        Ok(())
    }

    /// The pictures in a sub-folder, by their names in it without extension.
    fn pictures(&mut self, folder: &Path, below: &str) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for name in files_below(&folder.join(below))? {
            let file = format!("{below}/{name}");
            match kind_of(&name) {
                FileKind::Picture => {
                    let stem = Path::new(&name).with_extension("").to_string_lossy().replace('\\', "/");
                    if let Some(other) = found.insert(stem, file.clone()) {
                        self.problem(file, format!("has the same name as {other}: which of them is meant?"));
                    }
                }
                FileKind::OtherPicture => {
                    self.problem(file, "is not JPEG, PNG or WebP: convert it or move it out of the folder");
                }
                FileKind::Table | FileKind::Other => {}
            }
        }
        Ok(found)
    }

    /// The rows of a Parquet file.
    fn read_table(&mut self, folder: &Path, file: &str) {
        match rows(folder, file) {
            Ok(rows) => {
                for (number, row) in rows.into_iter().enumerate() {
                    self.add_instructed(format!("{file} row {number}"), row);
                }
            }
            Err(problem) => self.problem(file, problem),
        }
    }
}

/// The Parquet files of `folder` and of its folder `data`, where Hugging Face keeps them: those of the split `train` if there
/// are any, else all.
fn tables(folder: &Path) -> Result<Vec<String>> {
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
    let of_train = |file: &String| file.trim_start_matches("data/").starts_with("train");
    if found.iter().any(of_train) {
        found.retain(of_train);
    }
    found.sort_unstable();
    Ok(found)
}

/// The rows of a Parquet file. A column of pictures is of structs with `bytes`, as Hugging Face writes them.
fn rows(folder: &Path, file: &str) -> std::result::Result<Vec<Row>, String> {
    let table = Table::open(&folder.join(file))?;
    let first = |names: &[&str], field: &str| names.iter().map(|name| format!("{name}{field}")).find(|n| table.has(n));
    let picture = |what: &str, names: &[&str]| {
        first(names, ".bytes").ok_or_else(|| format!("has no column of {what} pictures ({})", columns(names)))
    };
    let (original, edited) = (picture("original", ORIGINAL)?, picture("edited", EDITED)?);
    let instruction =
        first(INSTRUCTION, "").ok_or_else(|| format!("has no instructions ({})", columns(INSTRUCTION)))?;
    let texts = |column: &str| -> std::result::Result<Vec<String>, String> {
        let cells = table.read(column, 0..table.rows())?.into_iter();
        Ok(cells.map(|cell| clean(&String::from_utf8_lossy(cell.as_ref().map_or(&[], |cell| cell.data())))).collect())
    };
    let instructions = texts(&instruction)?;
    let captions = |names| match first(names, "") {
        Some(column) => texts(&column),
        None => Ok(vec![String::new(); instructions.len()]),
    };
    let (before, after) = (captions(ORIGINAL_CAPTION)?, captions(EDITED_CAPTION)?);
    let texts = instructions.into_iter().zip(before.into_iter().zip(after));
    let cell = |column: &str, row| Place { file: file.into(), cell: Some(Cell { row, column: column.into() }) };
    Ok(texts
        .enumerate()
        .map(|(number, (instruction, (before, after)))| Row {
            original_caption: Some(before).filter(|caption| !caption.is_empty()),
            edited_caption: Some(after).filter(|caption| !caption.is_empty()),
            ..Row::new(cell(&edited, number), Some(cell(&original, number)), &instruction)
        })
        .collect())
}

/// The picture that a row of a metadata file names in the first of the columns `names`, or in one of these with `_file_name`
/// appended, as Hugging Face's folders of pictures have it.
fn picture(folder: &Path, record: &Record, names: &[&str]) -> std::result::Result<String, String> {
    let files = names.iter().map(|name| format!("{name}_file_name")).collect::<Vec<_>>();
    let files: Vec<&str> = names.iter().copied().chain(files.iter().map(String::as_str)).collect();
    let name = record.column(&files).map(str::trim).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| format!("is not given ({})", columns(names)))?;
    let file = relative(name).ok_or_else(|| format!("`{name}` must be a path inside the folder"))?;
    if kind_of(&file) != FileKind::Picture {
        return Err(format!("{file} is not a JPEG, PNG or WebP file (by its extension)"));
    }
    if !folder.join(&file).is_file() {
        return Err(format!("there is no such picture as {file}"));
    }
    Ok(file)
}

/// The names of columns, for people.
fn columns(names: &[&str]) -> String {
    format!("column `{}`; also {}", names[0], names[1..].join(", "))
}
