//! Reading a data folder of edits: pairs of images, and the instructions that turn the first into the second.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;

use super::{
    captions::parent,
    listing::Listing,
    manifest::{FileKind, Manifest, Row, clean, kind_of, named},
    metadata::{Record, is_metadata, records},
    table::{Images, Table, tables},
    text_file::read_text,
};
use crate::{error::Result, paths::composed, weights::read_json};

// Names of the columns in metadata and Parquet files; the first one present counts. Besides our own names these are those of
// diffusers' train_instruct_pix2pix.py and of public datasets of edits.
const ORIGINAL: &[&str] =
    &["original", "original_image", "input_image", "source_image", "source_img", "input", "source"];
const EDITED: &[&str] = &["edited", "edited_image", "output_image", "target_image", "target_img", "output", "target"];
const INSTRUCTION: &[&str] = &["instruction", "edit_prompt", "edit_instruction", "edit", "prompt", "text"];
const ORIGINAL_CAPTION: &[&str] =
    &["original_caption", "original_prompt", "source_caption", "source_prompt", "input_caption", "input_prompt"];
const EDITED_CAPTION: &[&str] =
    &["edited_caption", "edited_prompt", "target_caption", "target_prompt", "output_caption", "output_prompt"];

/// Common names of the folders of originals and edited images; the first pair present counts.
const FOLDERS: [[&str; 2]; 6] = [
    ["original", "edited"],
    ["original_images", "edited_images"],
    ["originals", "edits"],
    ["input", "output"],
    ["source", "target"],
    ["before", "after"],
];

impl Manifest {
    /// Reads all `metadata.jsonl` and `metadata.csv` if there are any, else a dataset in the layout of InstructPix2Pix's own, else
    /// folders of originals and edited images, else the Parquet files, and those in the folder `data`.
    ///
    /// # Errors
    /// The folder, or its metadata file, cannot be read.
    pub(super) fn read_edits(&mut self, listing: &Listing, folder: &Path) -> Result<()> {
        let there = |names: &[&str; 2]| names.map(|name| folder.join(name).is_dir());
        let names = FOLDERS.into_iter().find(|names| there(names) == [true; 2]).unwrap_or(FOLDERS[0]);
        let pairs = there(&names);
        let tables = tables(folder)?;
        let prompts = prompt_files(listing);
        let governed: BTreeSet<&str> =
            listing.files.iter().filter(|file| is_metadata(file)).map(|file| parent(file)).collect();
        if !prompts.is_empty() {
            self.read_seeds(listing, folder, &prompts);
        } else if !governed.is_empty() {
            let mut seen = BTreeSet::new();
            for below in governed {
                self.read_edit_metadata(listing, folder, below, &mut seen)?;
            }
            self.leave_out(".parquet files beside metadata", &[&tables.read[..], &tables.others].concat());
        } else if pairs != [false; 2] && !tables.read.is_empty() {
            self.problem(&tables.read[0], "there are folders of images too: keep one of them");
        } else if pairs == [true; 2] {
            self.pair(listing, folder, names);
        } else if pairs != [false; 2] {
            let (there, missing) = if pairs[0] { ("original", "edited") } else { ("edited", "original") };
            self.problem(format!("{there}/"), format!("there is no folder {missing}/ beside it"));
        } else {
            tables.read.iter().for_each(|file| self.read_table(listing, folder, file));
            self.leave_out(".parquet files of other splits than train", &tables.others);
        }
        if self.problems.is_empty() {
            self.count_unlisted(listing);
        }
        if self.rows.is_empty() && self.problems.is_empty() {
            self.problems.push(
                "there are no edits: neither rows in a metadata.jsonl or metadata.csv, nor images in folders original/ \
                 and edited/, nor .parquet files with rows"
                    .into(),
            );
        }
        Ok(())
    }

    /// Reports how many images of the folder belong to no edit.
    fn count_unlisted(&mut self, listing: &Listing) {
        let rows = self.rows.iter().flat_map(|row| std::iter::once(&row.picture).chain(&row.original));
        let used: BTreeSet<&str> = rows.map(|place| place.file.as_str()).collect();
        let is_picture = |file: &&String| [FileKind::Picture, FileKind::OtherPicture].contains(&kind_of(file));
        let unlisted = listing.files.iter().filter(|file| is_picture(file) && !used.contains(file.as_str()));
        let unlisted: Vec<String> = unlisted.cloned().collect();
        self.leave_out("images that belong to no edit", &unlisted);
    }

    /// The edits of the metadata file in the sub-folder `below`.
    fn read_edit_metadata(
        &mut self,
        listing: &Listing,
        folder: &Path,
        below: &str,
        seen: &mut BTreeSet<[String; 3]>,
    ) -> Result<()> {
        let Some(records) = records(folder, below)? else { return Ok(()) };
        let names = [ORIGINAL, EDITED].map(with_file_names);
        let [original, edited] = names.each_ref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
        let read = [&original[..], &edited, INSTRUCTION, ORIGINAL_CAPTION, EDITED_CAPTION];
        self.unused.extend(records.unread(&read));
        for record in records.rows {
            match record {
                Ok(record) => self.add_edit(listing, below, &record, seen),
                Err(problem) => self.problems.push(problem),
            }
        }
        Ok(())
    }

    /// The dataset of InstructPix2Pix itself (timothybrooks/instruct-pix2pix): a folder for each prompt, with a `prompt.json` and pairs
    /// `<seed>_0.jpg` and `<seed>_1.jpg`, and a list `seeds.json` of those that are good enough.
    fn read_seeds(&mut self, listing: &Listing, folder: &Path, prompts: &[&String]) {
        #[derive(Deserialize)]
        struct Prompt {
            #[serde(alias = "caption")]
            input: Option<String>,
            edit: String,
            #[serde(alias = "edited_caption")]
            output: Option<String>,
        }
        let good: Option<BTreeSet<(String, String)>> = match folder.join(SEEDS).is_file() {
            false => None,
            true => match read_json::<Vec<(String, Vec<String>)>>(folder.join(SEEDS)) {
                Ok(seeds) => {
                    let of =
                        |(name, seeds): (String, Vec<String>)| seeds.into_iter().map(move |seed| (name.clone(), seed));
                    Some(seeds.into_iter().flat_map(of).collect())
                }
                Err(e) => return self.problem(SEEDS, e.problems().join("; ")),
            },
        };
        for file in prompts {
            let below = parent(file);
            let Prompt { input, edit, output } = match read_json(folder.join(file)) {
                Ok(prompt) => prompt,
                Err(e) => {
                    self.problem(file, e.problems().join("; "));
                    continue;
                }
            };
            let name = below.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
            for (seed, [original, edited]) in self.seeded(listing, below) {
                if good.as_ref().is_some_and(|good| !good.contains(&(name.clone(), seed))) {
                    continue;
                }
                let row = Row::new(edited.clone().into(), Some(original.into()), &edit);
                self.add_instructed(
                    edited,
                    Row { original_caption: input.clone(), edited_caption: output.clone(), ..row },
                );
            }
        }
    }

    /// The pairs in a folder of such a dataset, by seed.
    fn seeded(&mut self, listing: &Listing, below: &str) -> Vec<(String, [String; 2])> {
        let mut sides: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        let here = listing.files.iter().filter(|file| parent(file) == below && kind_of(file) == FileKind::Picture);
        for file in here {
            let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            for (side, end) in ["_0", "_1"].into_iter().enumerate() {
                if let Some(seed) = stem.strip_suffix(end) {
                    sides.entry(seed.into()).or_default()[side] = Some(file.clone());
                }
            }
        }
        let mut pairs = Vec::new();
        for (seed, sides) in sides {
            match sides {
                [Some(original), Some(edited)] => pairs.push((seed, [original, edited])),
                [one, other] => {
                    let (end, file) = if one.is_none() { ("_0", other) } else { ("_1", one) };
                    self.problem(file.unwrap_or_default(), format!("there is no image {seed}{end} beside it"));
                }
            }
        }
        pairs
    }

    /// The edit of a row of the metadata file in the sub-folder `below`.
    fn add_edit(&mut self, listing: &Listing, below: &str, record: &Record, seen: &mut BTreeSet<[String; 3]>) {
        let found = [("original", ORIGINAL), ("edited", EDITED)].map(|(what, names)| {
            picture(listing, below, record, names)
                .map_err(|problem| format!("{}, {what} image: {problem}", record.place))
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

    /// Images of the same name, but for the extension, in two `folders`, and the `.txt` file of that name in the second, the first
    /// or in `instruction`.
    fn pair(&mut self, listing: &Listing, folder: &Path, folders: [&str; 2]) {
        let [before, after] = folders;
        let [originals, edits] = folders.map(|below| self.pictures(listing, below));
        for (name, original) in &originals {
            if !edits.contains_key(name) {
                self.problem(original, format!("there is no image {after}/{name} of any extension"));
            }
        }
        for (name, edited) in edits {
            let Some(original) = originals.get(&name) else {
                self.problem(edited, format!("there is no image {before}/{name} of any extension"));
                continue;
            };
            let mut texts = [after, before, "instruction"].map(|place| format!("{place}/{name}.txt")).into_iter();
            let Some(text) = texts.find_map(|text| listing.find(&text)) else {
                self.problem(
                    edited,
                    format!("there is no instruction {after}/{name}.txt (nor in {before}/, instruction/)"),
                );
                continue;
            };
            match read_text(&folder.join(&text)) {
                Ok(instruction) => {
                    self.add_instructed(text, Row::new(edited.into(), Some(original.clone().into()), &instruction))
                }
                Err(e) => self.problem(text, e),
            }
        }
    }

    /// The images in a sub-folder, by their names without extension, in composed Unicode form.
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
                        self.problem(file, format!("has the same name as {other}: rename or remove one of them"));
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
    fn read_table(&mut self, listing: &Listing, folder: &Path, file: &str) {
        match rows(listing, folder, file) {
            Ok((rows, unread)) => {
                self.unused.extend(unread);
                for (number, row) in rows.into_iter().enumerate() {
                    match row {
                        Ok(row) => self.add_instructed(format!("{file} row {number}"), row),
                        Err(problems) => self.problems.extend(problems),
                    }
                }
            }
            Err(problem) => self.problem(file, problem),
        }
    }
}

/// A row, or the problem with its images.
type FoundRow = std::result::Result<Row, Vec<String>>;

/// The rows of a Parquet file.
fn rows(listing: &Listing, folder: &Path, file: &str) -> std::result::Result<(Vec<FoundRow>, Option<String>), String> {
    let table = Table::open(&folder.join(file))?;
    let first = |names: &[&str], field: &str| table.first(names, field);
    let picture = |what: &str, names: &[&str]| {
        let all = with_file_names(names);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Images::of(&table, &all).ok_or_else(|| format!("has no column of {what} images ({})", columns(names)))
    };
    let (original, edited) = (picture("original", ORIGINAL)?, picture("edited", EDITED)?);
    let pairs = original.places(&table, file, listing)?.into_iter().zip(edited.places(&table, file, listing)?);
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
    let captions = [ORIGINAL_CAPTION, EDITED_CAPTION].map(|names| first(names, "").unwrap_or_default());
    let read = [original.column(), edited.column(), &instruction, &captions[0], &captions[1]];
    let rows = texts
        .zip(pairs)
        .map(|((instruction, (before, after)), pair)| match pair {
            (Ok(original), Ok(edited)) => Ok(Row {
                original_caption: Some(before).filter(|caption| !caption.is_empty()),
                edited_caption: Some(after).filter(|caption| !caption.is_empty()),
                ..Row::new(edited, Some(original), &instruction)
            }),
            (original, edited) => Err([original.err(), edited.err()].into_iter().flatten().collect()),
        })
        .collect();
    Ok((rows, table.unread(file, &read)))
}

/// The file that lists the seeds of InstructPix2Pix's own dataset that are good enough.
const SEEDS: &str = "seeds.json";

/// The file in each folder of such a dataset that describes its edits.
fn prompt_files(listing: &Listing) -> Vec<&String> {
    listing.files.iter().filter(|file| file.ends_with("/prompt.json")).collect()
}

/// The columns `names`, and these with `_file_name` appended, as in Hugging Face's image folders.
fn with_file_names(names: &[&str]) -> Vec<String> {
    let files = names.iter().map(|name| format!("{name}_file_name"));
    names.iter().map(|name| name.to_string()).chain(files).collect()
}

/// The columns of a metadata file for the edited image and for the instruction.
pub(super) fn edited_columns() -> (Vec<String>, &'static [&'static str]) {
    (with_file_names(EDITED), INSTRUCTION)
}

/// The image that a row of a metadata file names, in the first of the columns [`with_file_names`].
fn picture(listing: &Listing, below: &str, record: &Record, names: &[&str]) -> std::result::Result<String, String> {
    let columns_of = with_file_names(names);
    let name = record.text(&columns_of.iter().map(String::as_str).collect::<Vec<_>>())?.map(str::trim);
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| format!("is not given ({})", columns(names)))?;
    if kind_of(name) != FileKind::Picture {
        return Err(format!("{name} is not a JPEG, PNG or WebP file (by its extension)"));
    }
    named(listing, below, name)
}

/// The names of columns, for messages.
fn columns(names: &[&str]) -> String {
    format!("column `{}`; also {}", names[0], names[1..].join(", "))
}
