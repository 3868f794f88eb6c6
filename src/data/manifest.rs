//! The list of images with their captions or instructions.

use std::path::{Component, Path};

use super::{
    DataConfig, DatasetKind, Place,
    images::PICTURE_ENDINGS,
    listing::{Listing, repeats_of},
};
use crate::{
    error::{Error, Result},
    notice::some_of,
};

/// Extensions of other images, which are reported.
const OTHER_PICTURES: [&str; 12] =
    ["avif", "bmp", "dng", "gif", "heic", "heif", "jp2", "jxl", "psd", "raw", "tif", "tiff"];

/// One image and its caption, or one edit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The image; of an edit, the edited image.
    pub picture: Place,
    /// The original, if this is an edit.
    pub original: Option<Place>,
    /// The caption, with the trigger word; of an edit, the instruction.
    pub caption: String,
    /// The caption of the original, if given.
    pub original_caption: Option<String>,
    /// The caption of the edited image, if given.
    pub edited_caption: Option<String>,
    /// How often the image counts in an epoch.
    pub repeats: usize,
}

impl Row {
    /// A row without captions of the two images of an edit.
    pub fn new(picture: Place, original: Option<Place>, caption: &str) -> Self {
        Self { picture, original, caption: clean(caption), original_caption: None, edited_caption: None, repeats: 1 }
    }
}

/// The rows of a data folder, sorted by image, and the problems of the others.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The usable rows.
    pub rows: Vec<Row>,
    /// One line for each problem.
    pub problems: Vec<String>,
    /// Unused files of the folder, one line for each kind, with the count.
    pub unused: Vec<String>,
}

impl Manifest {
    /// Reads the contents of the folder, except the images themselves, which are not opened yet.
    ///
    /// # Errors
    /// The folder itself or its metadata cannot be read, or a setting does not suit the kind. Problems with single rows are
    /// collected in [`problems`](Self::problems).
    pub fn read(config: &DataConfig, kind: DatasetKind) -> Result<Self> {
        let folder = &config.path;
        if !folder.is_dir() {
            let problem = if folder.exists() { "is a file, not a folder" } else { "there is no such folder" };
            return Err(Error::file(folder, problem).hint("`data.path` is the folder that holds the images"));
        }
        let manifest = Self::look(&Listing::of(folder)?, config, kind)?;
        if !manifest.unused.is_empty() {
            tracing::warn!("{}: not used: {}", folder.display(), manifest.unused.join("; "));
        }
        Ok(manifest)
    }

    /// The same from a listing, without logging what is not used.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn look(listing: &Listing, config: &DataConfig, kind: DatasetKind) -> Result<Self> {
        let folder = &config.path;
        let mut manifest = Self::default();
        let trigger = config.trigger.trim();
        for name in listing.nameless.iter().filter(|name| kind_of(name) != FileKind::Other) {
            manifest.problem(name, "its name is not UTF-8: rename it");
        }
        manifest.leave_out("kiln's own run folders", &listing.runs);
        if let Some(count) = folder.file_name().and_then(|name| name.to_str()).and_then(repeats_of) {
            let said = format!("the {count} in the folder's own name (`data.repeats` says how often images count)");
            manifest.unused.push(said);
        }
        match kind {
            DatasetKind::Captions => manifest.read_captions(listing, folder, trigger)?,
            DatasetKind::Edits if trigger.is_empty() => manifest.read_edits(listing, folder)?,
            DatasetKind::Edits => {
                return Err(Error::setting("data.trigger", "is for captions: instructions are trained on as they are")
                    .hint("remove `trigger` from `[data]`"));
            }
        }
        manifest.rows.sort_unstable();
        Ok(manifest)
    }

    /// Records that files, or folders, of the kind `what` are not used.
    pub(super) fn leave_out(&mut self, what: &str, names: &[impl AsRef<str>]) {
        if !names.is_empty() {
            self.unused.push(format!("{what}: {} ({})", names.len(), some_of(names)));
        }
    }

    /// Records a problem at `place`.
    pub(super) fn problem(&mut self, place: impl std::fmt::Display, problem: impl std::fmt::Display) {
        self.problems.push(format!("{place}: {problem}"));
    }

    /// Adds a row, or its problem.
    pub(super) fn add(&mut self, row: std::result::Result<Row, String>) {
        match row {
            Ok(row) => self.rows.push(row),
            Err(problem) => self.problems.push(problem),
        }
    }
}

/// The kind of a file, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An image that can be read.
    Picture,
    /// An image that cannot be read.
    OtherPicture,
    /// A Parquet file.
    Table,
    /// Anything else.
    Other,
}

/// The kind of `file`.
pub fn kind_of(file: &str) -> FileKind {
    let extension = Path::new(file).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        readable if PICTURE_ENDINGS.contains(&readable) => FileKind::Picture,
        other if OTHER_PICTURES.contains(&other) => FileKind::OtherPicture,
        "parquet" => FileKind::Table,
        _ => FileKind::Other,
    }
}

/// A caption as it is encoded: without byte-order mark and surrounding white space.
pub fn clean(caption: &str) -> String {
    caption.trim_start_matches('\u{feff}').trim().into()
}

/// `name` with `/` and without `.`, if it stays inside the folder. On Windows, `\` is the same as `/`; elsewhere a name with `\` may
/// come from there, or really contain a backslash.
pub fn relative(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

/// The file called `name` by a metadata file in the sub-folder `below` (empty, or ending in `/`).
///
/// # Errors
/// One clause about the name: it leads out of the folder, or there is no such file.
pub fn named(listing: &Listing, below: &str, name: &str) -> std::result::Result<String, String> {
    let spelled = [name.to_string(), name.replace('\\', "/")];
    let outside = || format!("`{name}` must be a path inside the folder");
    let inside: Vec<String> =
        spelled.iter().filter_map(|name| relative(name)).map(|name| format!("{below}{name}")).collect();
    if inside.len() < spelled.len() {
        return Err(outside());
    }
    inside.iter().find_map(|name| listing.find(name)).ok_or_else(|| format!("there is no such image as {}", inside[1]))
}
