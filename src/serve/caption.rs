//! A caption that people edit: its text, and by what it is known to be the one that they have seen.

use std::fs;

use serde::Serialize;
use utoipa::ToSchema;

use crate::{data::CaptionedImage, disk::replace, error::Error};

/// The longest caption that is written, in bytes.
const LONGEST: usize = 64 << 10;

/// The caption of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Caption {
    /// As it is trained on: without white space around it. Empty if there is none.
    pub text: String,
    /// Of the bytes of its file. `None` if it cannot be edited: a table of the folder has it, or its file is a link to elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Why a caption was not written.
#[derive(Debug)]
pub enum NotSaved {
    /// There is no such image.
    Unknown,
    /// It cannot be edited here, in a sentence.
    ReadOnly(String),
    /// It is another one by now.
    Conflict(Caption),
    /// The new one cannot be a caption, in a sentence.
    Invalid(String),
    /// The disk refuses.
    Failed(Error),
}

impl Caption {
    /// The caption of an image as it is now. Text and etag are of one reading: else a text could be sent with the etag of a newer
    /// one, which its reader would overwrite unseen.
    pub fn of(image: &CaptionedImage) -> Self {
        let listed = || image.caption.clone().unwrap_or_default();
        let Some(file) = image.text.as_ref().filter(|file| !file.is_link()) else {
            return Self { text: listed(), etag: None };
        };
        let bytes = fs::read(file.path()).ok();
        let text = bytes.as_deref().and_then(|bytes| file.caption_of(bytes)).unwrap_or_else(listed);
        Self { text, etag: Some(etag(bytes.as_deref())) }
    }

    /// Writes `text` in its place if `seen` names it. The caller sees to it that nobody else writes meanwhile.
    ///
    /// # Errors
    /// See [`NotSaved`].
    pub(super) fn replace(self, image: &CaptionedImage, text: &str, seen: &str) -> Result<Self, NotSaved> {
        let Some(file) = &image.text else {
            let problem = "its caption is in a table of the folder (metadata.jsonl, metadata.csv, .parquet): edit that";
            return Err(NotSaved::ReadOnly(problem.into()));
        };
        if self.etag.is_none() {
            return Err(NotSaved::ReadOnly("its caption file is a link to a file elsewhere: edit that".into()));
        }
        if self.etag.as_deref() != Some(seen) {
            return Err(NotSaved::Conflict(self));
        }
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.len() > LONGEST || text.contains('\0') {
            return Err(NotSaved::Invalid(format!("a caption has at most {LONGEST} bytes, none of them zero")));
        }
        let written = text.to_string() + "\n";
        let write = |partial: &std::path::Path| fs::write(partial, &written).map_err(|e| Error::io(file.path(), e));
        replace(file.path(), write).map_err(NotSaved::Failed)?;
        Ok(Self { text: text.into(), etag: Some(etag(Some(written.as_bytes()))) })
    }
}

/// Of the bytes of a file; `"none"` if there is none.
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
        fs::write(here("metadata.csv"), "file_name,text\na.png,a cat\n").unwrap();
        let tabled = image(folder.path());
        assert_eq!(Caption::of(&tabled), Caption { text: "a cat".into(), etag: None });
        let refused = Caption::of(&tabled).replace(&tabled, "x", "\"none\"");
        assert!(matches!(refused, Err(NotSaved::ReadOnly(problem)) if problem.contains("metadata.csv")));
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
