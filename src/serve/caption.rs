//! Editable captions: a text with an etag, so that nobody overwrites a version that they have not seen.

use std::fs;

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    data::{CaptionPlace, CaptionedImage},
    disk::replace,
    error::Error,
};

/// The longest caption that is written, in bytes.
const LONGEST: usize = 64 << 10;

/// The caption of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Caption {
    /// The text as used in training: trimmed. Empty if there is none.
    pub text: String,
    /// The etag of its file, or of its text in a metadata file. `None` if it cannot be edited: it is in a Parquet file, or its
    /// file is a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Why a caption was not written.
#[derive(Debug)]
pub enum NotSaved {
    /// There is no such image.
    Unknown,
    /// It cannot be edited here; the reason, in a sentence.
    ReadOnly(String),
    /// It has changed since; its current version.
    Conflict(Caption),
    /// The new text is not a valid caption; the reason, in a sentence.
    Invalid(String),
    /// An I/O error.
    Failed(Error),
}

impl Caption {
    /// The caption of an image: read now from its own file, or as listed in a metadata file. Text and etag come from one read:
    /// otherwise a text could be sent with the etag of a newer one, which its reader would then overwrite unseen.
    pub fn of(image: &CaptionedImage) -> Self {
        let listed = || image.caption.clone().unwrap_or_default();
        match image.place.as_ref().filter(|place| !place.is_link()) {
            None => Self { text: listed(), etag: None },
            Some(CaptionPlace::Cell(_)) => {
                let text = listed();
                let etag = Some(etag(Some(text.as_bytes())));
                Self { text, etag }
            }
            Some(CaptionPlace::File(file)) => {
                let bytes = fs::read(file.path()).ok();
                let text = bytes.as_deref().and_then(|bytes| file.caption_of(bytes)).unwrap_or_else(listed);
                Self { text, etag: Some(etag(bytes.as_deref())) }
            }
        }
    }

    /// Replaces it by `text` if `seen` is its etag. The caller makes sure that nobody else writes at the same time.
    ///
    /// # Errors
    /// See [`NotSaved`].
    pub(super) fn replace(self, image: &CaptionedImage, text: &str, seen: &str) -> Result<Self, NotSaved> {
        let Some(place) = &image.place else {
            let problem = "its caption is neither in a text file nor in a row of a metadata file: add one, or edit the .parquet file";
            return Err(NotSaved::ReadOnly(problem.into()));
        };
        if self.etag.is_none() {
            return Err(NotSaved::ReadOnly("the caption file is a link to another file: edit that one".into()));
        }
        if self.etag.as_deref() != Some(seen) {
            return Err(NotSaved::Conflict(self));
        }
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.len() > LONGEST || text.contains('\0') {
            return Err(NotSaved::Invalid(format!("a caption may have at most {LONGEST} bytes and no zero bytes")));
        }
        let (written, tag) = match place {
            CaptionPlace::File(_) => {
                let written = text.to_string() + "\n";
                let tag = etag(Some(written.as_bytes()));
                (written.into_bytes(), tag)
            }
            CaptionPlace::Cell(cell) => {
                let named = |problem| NotSaved::ReadOnly(format!("{}: {problem}", cell.name()));
                (cell.rewritten(&self.text, text).map_err(named)?, etag(Some(text.as_bytes())))
            }
        };
        let write = |partial: &std::path::Path| fs::write(partial, &written).map_err(|e| Error::io(place.path(), e));
        replace(place.path(), write).map_err(NotSaved::Failed)?;
        Ok(Self { text: text.into(), etag: Some(tag) })
    }
}

/// The etag of a file's bytes; `"none"` if there is no file.
fn etag(bytes: Option<&[u8]>) -> String {
    bytes.map_or("\"none\"".into(), |bytes| format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::CaptionedFolder;

    fn image(folder: &Path) -> CaptionedImage {
        CaptionedFolder::read(folder).unwrap().images.remove(0)
    }

    #[test]
    fn what_is_no_caption_file_of_its_own_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let here = |name: &str| folder.path().join(name);
        fs::write(here("a.png"), "").unwrap();
        fs::write(here("metadata.csv"), "file_name,text\nb.png,a cat\n").unwrap();
        let unlisted = image(folder.path());
        assert_eq!(Caption::of(&unlisted), Caption { text: String::new(), etag: None });
        let refused = Caption::of(&unlisted).replace(&unlisted, "x", "\"none\"");
        assert!(matches!(refused, Err(NotSaved::ReadOnly(problem)) if problem.contains("metadata")));
        fs::remove_file(here("metadata.csv")).unwrap();
        let bare = image(folder.path());
        for long in ["x".repeat(LONGEST + 1), "a\0b".into()] {
            assert!(matches!(Caption::of(&bare).replace(&bare, &long, "\"none\""), Err(NotSaved::Invalid(_))));
        }
        assert!(!here("a.txt").exists());
        let saved = Caption::of(&bare).replace(&bare, "<img onerror=alert(1)>", "\"none\"").unwrap();
        assert_eq!(Caption::of(&image(folder.path())), saved);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(folder.path().join("a.png"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("a.txt")).unwrap();
        let linked = image(folder.path());
        let refused = Caption::of(&linked).replace(&linked, "x", "\"none\"");
        assert!(matches!(refused, Err(NotSaved::ReadOnly(problem)) if problem.contains("link")));
    }
}
