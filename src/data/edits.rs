//! Edits, as a data folder holds them: pairs of pictures, and the instructions that turn the first into the second.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    Cell, Place,
    listing::Listing,
    manifest::{FileKind, Manifest, Row, clean, kind_of, named},
    metadata::{Record, records},
    table::{Table, tables},
};
use crate::{error::Result, paths::composed};

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
    pub(super) fn read_edits(&mut self, listing: &Listing, folder: &Path) -> Result<()> {
        let pairs = ["original", "edited"].map(|name| folder.join(name).is_dir());
        let tables = tables(folder)?;
        match records(folder, "")? {
            Some(records) => {
                let mut seen = BTreeSet::new();
                let names = [ORIGINAL, EDITED].map(with_file_names);
                let [original, edited] =
                    names.each_ref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
                let read = [&original[..], &edited, INSTRUCTION, ORIGINAL_CAPTION, EDITED_CAPTION];
                self.unused.extend(records.unread(&read));
                for record in records.rows {
                    match record {
                        Ok(record) => self.add_edit(listing, &record, &mut seen),
                        Err(problem) => self.problems.push(problem),
                    }
                }
                self.leave_out(".parquet files beside metadata", &[&tables.read[..], &tables.others].concat());
            }
            None if pairs != [false; 2] && !tables.read.is_empty() => {
                self.problem(&tables.read[0], "there are folders of pictures too: keep one of them");
            }
            None if pairs == [true; 2] => self.pair(listing, folder),
            None if pairs != [false; 2] => {
                let (there, missing) = if pairs[0] { ("original", "edited") } else { ("edited", "original") };
                self.problem(format!("{there}/"), format!("there is no folder {missing}/ beside it"));
            }
            None => {
                tables.read.iter().for_each(|file| self.read_table(folder, file));
                self.leave_out(".parquet files of other splits than train", &tables.others);
            }
        }
        if self.problems.is_empty() {
            self.count_unlisted(listing);
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

    /// Says how many pictures of the folder are in no edit.
    fn count_unlisted(&mut self, listing: &Listing) {
        let rows = self.rows.iter().flat_map(|row| std::iter::once(&row.picture).chain(&row.original));
        let used: BTreeSet<&str> = rows.map(|place| place.file.as_str()).collect();
        let is_picture = |file: &&String| [FileKind::Picture, FileKind::OtherPicture].contains(&kind_of(file));
        let unlisted = listing.files.iter().filter(|file| is_picture(file) && !used.contains(file.as_str()));
        let unlisted: Vec<String> = unlisted.cloned().collect();
        self.leave_out("images that are in no edit", &unlisted);
    }

    /// The edit of a row of a metadata file.
    fn add_edit(&mut self, listing: &Listing, record: &Record, seen: &mut BTreeSet<[String; 3]>) {
        let found = [("original", ORIGINAL), ("edited", EDITED)].map(|(what, names)| {
            picture(listing, record, names).map_err(|problem| format!("{}, {what} picture: {problem}", record.place))
        });
        let problems: Vec<String> = found.iter().filter_map(|found| found.clone().err()).collect();
        let [Ok(original), Ok(edited)] = found else { return self.problems.extend(problems) };
        let place = format!("{}, {edited}", record.place);
        let instruction = match record.text(INSTRUCTION) {
            Ok(Some(instruction)) => clean(instruction),
            Ok(None) => return self.problem(place, format!("has no instruction ({})", columns(INSTRUCTION))),
            Err(problem) => return self.problem(place, problem),
        };
        if !seen.insert([original.clone(), edited.clone(), instruction.clone()]) {
            return self.problem(place, "is listed twice with the same original and instruction");
        }
        let caption = |names| Ok::<_, String>(record.text(names)?.map(clean).filter(|caption| !caption.is_empty()));
        let (original_caption, edited_caption) = match (caption(ORIGINAL_CAPTION), caption(EDITED_CAPTION)) {
            (Ok(original), Ok(edited)) => (original, edited),
            (Err(problem), _) | (_, Err(problem)) => return self.problem(place, problem),
        };
        self.add_instructed(
            place,
            Row { original_caption, edited_caption, ..Row::new(edited.into(), Some(original.into()), &instruction) },
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
    fn pair(&mut self, listing: &Listing, folder: &Path) {
        let [originals, edits] = ["original", "edited"].map(|below| self.pictures(listing, below));
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
            let Some(text) = texts.find_map(|text| listing.find(&text)) else {
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
    }

    /// The pictures in a sub-folder, by their names in it without extension, in composed form.
    fn pictures(&mut self, listing: &Listing, below: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (file, name) in
            listing.files.iter().filter_map(|file| Some((file, file.strip_prefix(below)?.strip_prefix('/')?)))
        {
            let file = file.clone();
            match kind_of(name) {
                FileKind::Picture => {
                    let stem = composed(&Path::new(name).with_extension("").to_string_lossy());
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
        found
    }

    /// The rows of a Parquet file.
    fn read_table(&mut self, folder: &Path, file: &str) {
        match rows(folder, file) {
            Ok((rows, unread)) => {
                self.unused.extend(unread);
                for (number, row) in rows.into_iter().enumerate() {
                    self.add_instructed(format!("{file} row {number}"), row);
                }
            }
            Err(problem) => self.problem(file, problem),
        }
    }
}

/// The rows of a Parquet file. A column of pictures is of structs with `bytes`, as Hugging Face writes them.
fn rows(folder: &Path, file: &str) -> std::result::Result<(Vec<Row>, Option<String>), String> {
    let table = Table::open(&folder.join(file))?;
    let first = |names: &[&str], field: &str| table.first(names, field);
    let picture = |what: &str, names: &[&str]| {
        first(names, ".bytes").ok_or_else(|| format!("has no column of {what} pictures ({})", columns(names)))
    };
    let (original, edited) = (picture("original", ORIGINAL)?, picture("edited", EDITED)?);
    let instruction =
        first(INSTRUCTION, "").ok_or_else(|| format!("has no instructions ({})", columns(INSTRUCTION)))?;
    let texts = |column: &str| Ok::<_, String>(table.texts(column)?.iter().map(|text| clean(text)).collect::<Vec<_>>());
    let instructions = texts(&instruction)?;
    let captions = |names| match first(names, "") {
        Some(column) => texts(&column),
        None => Ok(vec![String::new(); instructions.len()]),
    };
    let (before, after) = (captions(ORIGINAL_CAPTION)?, captions(EDITED_CAPTION)?);
    let texts = instructions.into_iter().zip(before.into_iter().zip(after));
    let cell = |column: &str, row| Place { file: file.into(), cell: Some(Cell { row, column: column.into() }) };
    let captions = [ORIGINAL_CAPTION, EDITED_CAPTION].map(|names| first(names, "").unwrap_or_default());
    let read = [&original, &edited, &instruction, &captions[0], &captions[1]].map(String::as_str);
    let rows = texts
        .enumerate()
        .map(|(number, (instruction, (before, after)))| Row {
            original_caption: Some(before).filter(|caption| !caption.is_empty()),
            edited_caption: Some(after).filter(|caption| !caption.is_empty()),
            ..Row::new(cell(&edited, number), Some(cell(&original, number)), &instruction)
        })
        .collect();
    Ok((rows, table.unread(file, &read)))
}

/// The columns `names`, and these with `_file_name` appended, as Hugging Face's folders of pictures have it.
fn with_file_names(names: &[&str]) -> Vec<String> {
    let files = names.iter().map(|name| format!("{name}_file_name"));
    names.iter().map(|name| name.to_string()).chain(files).collect()
}

/// The picture that a row of a metadata file names in the first of the columns [`with_file_names`].
fn picture(listing: &Listing, record: &Record, names: &[&str]) -> std::result::Result<String, String> {
    let columns_of = with_file_names(names);
    let name = record.text(&columns_of.iter().map(String::as_str).collect::<Vec<_>>())?.map(str::trim);
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| format!("is not given ({})", columns(names)))?;
    if kind_of(name) != FileKind::Picture {
        return Err(format!("{name} is not a JPEG, PNG or WebP file (by its extension)"));
    }
    named(listing, "", name)
}

/// The names of columns, for people.
fn columns(names: &[&str]) -> String {
    format!("column `{}`; also {}", names[0], names[1..].join(", "))
}
