//! A data folder as people look at it: every image with its caption, also those that training would refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    DataConfig, DatasetKind,
    captions::{parent, speaks_for, text_of},
    listing::Listing,
    manifest::{FileKind, Manifest, Row, clean, kind_of},
    metadata::is_metadata,
    text_file::text_of_bytes,
};
use crate::error::Result;

/// A data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptionedFolder {
    /// Its images, sorted by name. Of an edit, the edited one.
    pub images: Vec<CaptionedImage>,
    /// Whether they are edits, and their captions instructions.
    pub edits: bool,
    /// Why training would refuse some, a line each.
    pub problems: Vec<String>,
    /// What else is in the folder and would not be used, a line for each kind.
    pub unused: Vec<String>,
}

/// An image in a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionedImage {
    /// Its file, relative to the folder, with `/` on every system.
    pub file: String,
    /// Of an edit, the image before it.
    pub original: Option<String>,
    /// Its caption, or what the edit is told to do. `None` if there is none.
    pub caption: Option<String>,
    /// The file that holds its caption and nothing else, or would. `None` if a table of the folder says what the caption is.
    pub text: Option<CaptionFile>,
}

/// A file with one caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionFile(PathBuf);

impl CaptionedFolder {
    /// Looks at all names in a folder, and at its captions; at no image.
    ///
    /// # Errors
    /// The folder or a table of captions in it cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = DataConfig { path: folder.into(), ..DataConfig::default() };
        let listing = Listing::of(folder)?;
        let edits = Manifest::look(&config, DatasetKind::Edits)?;
        let is_edits = !edits.rows.is_empty();
        let manifest = if is_edits { edits } else { Manifest::look(&config, DatasetKind::Captions)? };
        let rows: BTreeMap<&str, &Row> = manifest.rows.iter().map(|row| (row.picture.file.as_str(), row)).collect();
        let originals: BTreeSet<&str> =
            manifest.rows.iter().filter_map(|row| row.original.as_ref()).map(|place| place.file.as_str()).collect();
        let governed = listing.files.iter().filter(|file| is_metadata(file));
        let governed: BTreeSet<String> = governed.map(|file| parent(file).to_string()).collect();
        let image = |file: &String| {
            let row = rows.get(file.as_str());
            let text = (!speaks_for(&governed, file)).then(|| {
                let name = text_of(file);
                CaptionFile(folder.join(listing.find(&name).unwrap_or(name)))
            });
            let caption = row.map(|row| row.caption.clone()).or_else(|| text.as_ref()?.read());
            let original = row.and_then(|row| Some(row.original.as_ref()?.file.clone()));
            CaptionedImage { file: file.clone(), original, caption, text }
        };
        let pictures = listing.files.iter().filter(|file| kind_of(file) == FileKind::Picture);
        let images = pictures.filter(|file| !originals.contains(file.as_str())).map(image).collect();
        Ok(Self { images, edits: is_edits, problems: manifest.problems, unused: manifest.unused })
    }
}

impl CaptionFile {
    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its caption as it is trained on; `None` if there is no such file, or it is no text.
    pub fn read(&self) -> Option<String> {
        self.caption_of(&fs::read(&self.0).ok()?)
    }

    /// The same of bytes that were read from it.
    pub fn caption_of(&self, bytes: &[u8]) -> Option<String> {
        text_of_bytes(bytes, &self.0).ok().map(|text| clean(&text))
    }

    /// Whether it is a link to a file elsewhere.
    pub fn is_link(&self) -> bool {
        fs::symlink_metadata(&self.0).is_ok_and(|metadata| metadata.is_symlink())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::folder_of as folder;

    fn shown(folder: &tempfile::TempDir) -> Vec<(String, Option<String>, bool)> {
        let read = CaptionedFolder::read(folder.path()).unwrap();
        read.images.into_iter().map(|image| (image.file, image.caption, image.text.is_some())).collect()
    }

    #[test]
    fn images_without_a_caption_are_there_too() {
        let folder = folder(&[("a.png", ""), ("a.txt", " a cat \n"), ("b/c.jpg", ""), ("d.png", ""), ("d.txt", "")]);
        let expected = [("a.png", Some("a cat"), true), ("b/c.jpg", None, true), ("d.png", Some(""), true)];
        let expected = expected.map(|(file, caption, text)| (file.into(), caption.map(String::from), text));
        assert_eq!(shown(&folder), expected);
        let read = CaptionedFolder::read(folder.path()).unwrap();
        assert_eq!((read.problems.len(), read.edits), (2, false));
        assert_eq!(read.images[1].text.as_ref().unwrap().path(), folder.path().join("b/c.txt"));
    }

    #[test]
    fn captions_of_a_table_are_shown_and_have_no_file_of_their_own() {
        let folder = folder(&[("a.png", ""), ("b.png", ""), ("metadata.csv", "file_name,text\na.png,a cat\n")]);
        assert_eq!(shown(&folder), [("a.png".into(), Some("a cat".into()), false), ("b.png".into(), None, false)]);
    }

    #[test]
    fn an_edit_is_one_image_with_its_original() {
        let read = CaptionedFolder::read(Path::new("datasets/quickstart-edit")).unwrap();
        assert!(read.edits && read.problems.is_empty() && read.images.len() == 28, "{read:?}");
        assert!(
            read.images.iter().all(|image| image.original.as_ref().is_some_and(|file| file.starts_with("original/")))
        );
        assert!(read.images.iter().all(|image| image.caption.is_some()));
    }
}
