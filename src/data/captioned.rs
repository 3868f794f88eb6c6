//! A data folder for viewing: every image with its caption, including those that training would refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use super::{
    DataConfig, DatasetKind,
    caption_cell::CaptionCell,
    captions::{CAPTION, parent, speaks_for, text_of},
    edits::edited_columns,
    listing::Listing,
    manifest::{FileKind, Manifest, Row, clean, kind_of, named},
    metadata::{is_metadata, records},
    text_file::text_of_bytes,
};
use crate::error::Result;

/// A data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptionedFolder {
    /// Its images, sorted by name; of edits, the edited images.
    pub images: Vec<CaptionedImage>,
    /// Whether they are edits, with instructions as captions.
    pub edits: bool,
    /// The reasons why training would refuse some, one line each.
    pub problems: Vec<String>,
    /// Other files in the folder that would not be used, one line for each kind.
    pub unused: Vec<String>,
}

/// A data folder with a fingerprint that shows whether it has changed since it was read.
#[derive(Clone, Debug)]
pub struct Dated {
    stamp: blake3::Hash,
    /// The contents.
    pub folder: Arc<CaptionedFolder>,
}

/// An image in a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionedImage {
    /// Its path relative to the folder, with `/` on every system.
    pub file: String,
    /// The original, if this is an edit.
    pub original: Option<String>,
    /// Its caption or instruction. `None` if there is none.
    pub caption: Option<String>,
    /// The location of its caption, existing or not. `None` if it cannot be edited: it is in a Parquet file, or in a row with errors.
    pub place: Option<CaptionPlace>,
}

/// The location of a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaptionPlace {
    /// A file of its own.
    File(CaptionFile),
    /// A row of a metadata file.
    Cell(CaptionCell),
}

/// A caption file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionFile(PathBuf);

impl CaptionedFolder {
    /// Reads all names in a folder, and its captions, but no images.
    ///
    /// # Errors
    /// The folder or a table of captions in it cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_listed(folder, &Listing::of(folder)?)
    }

    /// The same; `None` if nothing has changed since `before`: neither names, nor times and sizes of the caption files.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_again(folder: &Path, before: Option<Dated>) -> Result<Dated> {
        let listing = Listing::of(folder)?;
        let stamp = stamp(folder, &listing);
        match before {
            Some(before) if before.stamp == stamp => Ok(before),
            _ => Ok(Dated { stamp, folder: Arc::new(Self::read_listed(folder, &listing)?) }),
        }
    }

    fn read_listed(folder: &Path, listing: &Listing) -> Result<Self> {
        let config = DataConfig { path: folder.into(), ..DataConfig::default() };
        let edits = Manifest::look(listing, &config, DatasetKind::Edits)?;
        let is_edits = !edits.rows.is_empty();
        let manifest = if is_edits { edits } else { Manifest::look(listing, &config, DatasetKind::Captions)? };
        let rows: BTreeMap<&str, &Row> = manifest.rows.iter().map(|row| (row.picture.file.as_str(), row)).collect();
        let originals: BTreeSet<&str> =
            manifest.rows.iter().filter_map(|row| row.original.as_ref()).map(|place| place.file.as_str()).collect();
        let governed = listing.files.iter().filter(|file| is_metadata(file));
        let governed: BTreeSet<String> = governed.map(|file| parent(file).to_string()).collect();
        let mut cells = cells(folder, listing, &governed, is_edits)?;
        let image = |file: &String| {
            let row = rows.get(file.as_str());
            let original = row.and_then(|row| Some(row.original.as_ref()?.file.clone()));
            let mut caption = row.map(|row| row.caption.clone());
            let place = if speaks_for(&governed, file) {
                let cell = cells.remove(file);
                let cell = cell.filter(|(_, text)| caption.as_ref().is_none_or(|caption| caption == text));
                cell.map(|(cell, text)| {
                    caption.get_or_insert(text);
                    CaptionPlace::Cell(cell)
                })
            } else {
                let name = text_of(file);
                let text = CaptionFile(folder.join(listing.find(&name).unwrap_or(name)));
                caption = caption.or_else(|| text.read());
                Some(CaptionPlace::File(text))
            };
            CaptionedImage { file: file.clone(), original, caption, place }
        };
        let pictures = listing.files.iter().filter(|file| kind_of(file) == FileKind::Picture);
        let images = pictures.filter(|file| !originals.contains(file.as_str())).map(image).collect();
        Ok(Self { images, edits: is_edits, problems: manifest.problems, unused: manifest.unused })
    }
}

/// A hash of all names, and of the times of all files that are not images.
fn stamp(folder: &Path, listing: &Listing) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for file in &listing.files {
        hasher.update(file.as_bytes()).update(b"\0");
        if [FileKind::Other, FileKind::Table].contains(&kind_of(file))
            && let Ok(metadata) = fs::metadata(folder.join(file))
        {
            let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            hasher
                .update(&since.map_or(0, |since| since.as_nanos()).to_le_bytes())
                .update(&metadata.len().to_le_bytes());
        }
    }
    hasher.finalize()
}

/// The captions in metadata files and their texts, by image.
fn cells(
    folder: &Path,
    listing: &Listing,
    governed: &BTreeSet<String>,
    are_edits: bool,
) -> Result<BTreeMap<String, (CaptionCell, String)>> {
    let (names, texts) = if are_edits { edited_columns() } else { (vec!["file_name".to_string()], CAPTION) };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut cells = BTreeMap::new();
    for below in governed {
        let Some(records) = records(folder, below)? else { continue };
        for (row, record) in records.rows.iter().enumerate() {
            let Ok(record) = record else { continue };
            let (Ok(Some(name)), Ok(Some(text))) = (record.text(&names), record.text(texts)) else { continue };
            let Ok(file) = named(listing, below, name.trim()) else { continue };
            let cell = CaptionCell::of(folder.join(&records.file), row, record, &names, texts);
            cells.extend(cell.map(|cell| (file, (cell, clean(text)))));
        }
    }
    Ok(cells)
}

impl CaptionPlace {
    /// The file that contains it.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(CaptionFile(path)) => path,
            Self::Cell(cell) => cell.path(),
        }
    }

    /// Whether that file is a link to a file elsewhere.
    pub fn is_link(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok_and(|metadata| metadata.is_symlink())
    }
}

impl CaptionFile {
    /// Its path, existing or not.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its caption as used in training; `None` if there is no such file, or it is not text.
    pub fn read(&self) -> Option<String> {
        self.caption_of(&fs::read(&self.0).ok()?)
    }

    /// The same from bytes that were read from it.
    pub fn caption_of(&self, bytes: &[u8]) -> Option<String> {
        text_of_bytes(bytes, &self.0).ok().map(|text| clean(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::folder_of as folder;

    fn shown(folder: &tempfile::TempDir) -> Vec<(String, Option<String>, bool)> {
        let read = CaptionedFolder::read(folder.path()).unwrap();
        read.images.into_iter().map(|image| (image.file, image.caption, image.place.is_some())).collect()
    }

    #[test]
    fn images_without_a_caption_are_there_too() {
        let folder = folder(&[("a.png", ""), ("a.txt", " a cat \n"), ("b/c.jpg", ""), ("d.png", ""), ("d.txt", "")]);
        let expected = [("a.png", Some("a cat"), true), ("b/c.jpg", None, true), ("d.png", Some(""), true)];
        let expected = expected.map(|(file, caption, text)| (file.into(), caption.map(String::from), text));
        assert_eq!(shown(&folder), expected);
        let read = CaptionedFolder::read(folder.path()).unwrap();
        assert_eq!((read.problems.len(), read.edits), (2, false));
        assert_eq!(read.images[1].place.as_ref().unwrap().path(), folder.path().join("b/c.txt"));
    }

    #[test]
    fn captions_of_a_table_are_shown_with_their_place_in_it() {
        let folder = folder(&[("a.png", ""), ("b.png", ""), ("metadata.csv", "file_name,text\na.png, a cat\n")]);
        assert_eq!(shown(&folder), [("a.png".into(), Some("a cat".into()), true), ("b.png".into(), None, false)]);
        let read = CaptionedFolder::read(folder.path()).unwrap();
        let Some(CaptionPlace::Cell(cell)) = &read.images[0].place else { panic!("{read:?}") };
        assert_eq!(
            (cell.rewritten("a cat", "a dog").unwrap(), cell.path()),
            (b"file_name,text\na.png,a dog\n".to_vec(), &*folder.path().join("metadata.csv"))
        );
    }

    #[test]
    fn an_edit_is_one_image_with_its_original() {
        let read = CaptionedFolder::read(Path::new("tests/fixtures/picture-edits")).unwrap();
        assert!(read.edits && read.problems.is_empty() && read.images.len() == 28, "{read:?}");
        assert!(
            read.images.iter().all(|image| image.original.as_ref().is_some_and(|file| file.starts_with("original/")))
        );
        assert!(read.images.iter().all(|image| image.caption.is_some()));
    }
}
