//! Which pictures there are, and what their captions or instructions say.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use super::{DataConfig, DatasetKind, Place};
use crate::error::{Error, Result};

/// The extensions of pictures that can be read.
const READABLE: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// The extensions of other pictures, which a folder should not hold without a word.
const OTHER_PICTURES: [&str; 12] =
    ["avif", "bmp", "dng", "gif", "heic", "heif", "jp2", "jxl", "psd", "raw", "tif", "tiff"];

/// One picture and its caption, or one edit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The picture; of an edit, the edited one.
    pub picture: Place,
    /// Of an edit, the picture before it.
    pub original: Option<Place>,
    /// The caption, with the trigger word; of an edit, the instruction.
    pub caption: String,
    /// What the original shows, where it is said.
    pub original_caption: Option<String>,
    /// What the edited picture shows, where it is said.
    pub edited_caption: Option<String>,
}

impl Row {
    /// A row that does not say what its pictures show.
    pub fn new(picture: Place, original: Option<Place>, caption: &str) -> Self {
        Self { picture, original, caption: clean(caption), original_caption: None, edited_caption: None }
    }
}

/// The rows of a data folder, sorted by picture, and everything that is wrong with the others.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The usable rows.
    pub rows: Vec<Row>,
    /// One line for each problem.
    pub problems: Vec<String>,
}

impl Manifest {
    /// Reads what the folder holds, except the pictures themselves: they are not opened yet.
    ///
    /// # Errors
    /// The folder itself or its metadata cannot be read, or a setting does not suit the kind. Problems with single rows are
    /// collected in [`problems`](Self::problems).
    pub fn read(config: &DataConfig, kind: DatasetKind) -> Result<Self> {
        let folder = &config.path;
        if !folder.is_dir() {
            let problem = if folder.exists() { "is a file, not a folder" } else { "there is no such folder" };
            return Err(Error::file(folder, problem).hint("`data.path` is the folder that holds the pictures"));
        }
        let mut manifest = Self::default();
        let trigger = config.trigger.trim();
        match kind {
            DatasetKind::Captions => manifest.read_captions(folder, trigger)?,
            DatasetKind::Edits if trigger.is_empty() => manifest.read_edits(folder)?,
            DatasetKind::Edits => {
                return Err(Error::setting("data.trigger", "is for captions: instructions are trained on as they are")
                    .hint("remove `trigger` from `[data]`"));
            }
        }
        manifest.rows.sort_unstable();
        Ok(manifest)
    }

    /// Notes a problem of the thing at `place`.
    pub(super) fn problem(&mut self, place: impl std::fmt::Display, problem: impl std::fmt::Display) {
        self.problems.push(format!("{place}: {problem}"));
    }

    /// Adds a row, or what is wrong with it.
    pub(super) fn add(&mut self, row: std::result::Result<Row, String>) {
        match row {
            Ok(row) => self.rows.push(row),
            Err(problem) => self.problems.push(problem),
        }
    }
}

/// What a file is, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A picture that can be read.
    Picture,
    /// A picture that cannot be read.
    OtherPicture,
    /// A Parquet file.
    Table,
    /// Anything else.
    Other,
}

/// What `file` is.
pub fn kind_of(file: &str) -> FileKind {
    let extension = Path::new(file).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        readable if READABLE.contains(&readable) => FileKind::Picture,
        other if OTHER_PICTURES.contains(&other) => FileKind::OtherPicture,
        "parquet" => FileKind::Table,
        _ => FileKind::Other,
    }
}

/// A caption as it is encoded: without a byte-order mark and the white space around it.
pub fn clean(caption: &str) -> String {
    caption.trim_start_matches('\u{feff}').trim().into()
}

/// `name` with `/` and without `.`, if it stays inside the folder.
pub fn relative(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(&name.replace('\\', "/")).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

/// All files in `folder` and its sub-folders except hidden ones, relative to it. Each folder is entered once, however many
/// links lead to it.
pub fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut entered = BTreeSet::new();
    // The nearest first, in the order of names, so that of several ways to a folder the same one is always taken.
    let mut open = BTreeSet::from([(0, PathBuf::new())]);
    while let Some((depth, below)) = open.pop_first() {
        let here = folder.join(&below);
        if !entered.insert(here.canonicalize().map_err(|e| Error::io(&here, e))?) {
            continue;
        }
        for entry in std::fs::read_dir(&here).map_err(|e| Error::io(&here, e))? {
            let name = entry.map_err(|e| Error::io(&here, e))?.file_name();
            let name = below.join(&name);
            if name.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                continue;
            }
            if folder.join(&name).is_dir() {
                open.insert((depth + 1, name));
            } else {
                found.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
