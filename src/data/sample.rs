//! What a data folder is read into: images with captions, or edits.

use serde::{Deserialize, Serialize};

use super::{Bucket, Place};

/// What a data folder holds, and so how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetKind {
    /// Images with captions.
    Captions,
    /// Pairs of images, and the instructions that turn the first into the second.
    Edits,
}

/// An image of the data folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Picture {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// blake3 of the file: what the image is known by.
    pub hash: String,
    /// Its size in pixels, after the EXIF orientation.
    pub size: (usize, usize),
    /// The size it is trained at.
    pub bucket: Bucket,
    /// The keys of its latents: as it is and, if `data.flip` is on, mirrored.
    pub latents: Vec<String>,
    /// Length and time of the file when it was inspected; while they and `changed` stay, it is not read again.
    pub(super) stamp: Stamp,
    /// When the system last changed anything about the file, in nanoseconds since 1970: unlike the time in `stamp`, no program
    /// can set it. 0 where the system does not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) changed: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The length of a file and its time of change in nanoseconds since 1970.
pub(super) type Stamp = (u64, u64);

/// What is trained on at once: an image and its caption, or an edit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The image; of an edit, the edited one.
    pub picture: Picture,
    /// Of an edit, the image before it, in the bucket of the edited one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Picture>,
    /// The image's caption, with the trigger word; of an edit, the instruction.
    pub caption: String,
    /// The key of the caption's embeddings.
    pub prompt: String,
    /// How often it counts in an epoch, before `data.repeats`: more than once only in a folder that says so in its name.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeats: usize,
    /// What the original shows, where the data says it. Only measured with, never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_caption: Option<String>,
    /// What the edited image shows, where the data says it. Only measured with, never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_caption: Option<String>,
}

fn once() -> usize {
    1
}

fn is_once(repeats: &usize) -> bool {
    *repeats == 1
}

impl Sample {
    /// The image that the side of the split is drawn from: of an edit the original, so that all edits of one image are
    /// on one side.
    pub(super) fn subject(&self) -> &Picture {
        self.original.as_ref().unwrap_or(&self.picture)
    }

    /// The image, and of an edit the original.
    pub(super) fn pictures(&self) -> impl Iterator<Item = &Picture> {
        std::iter::once(&self.picture).chain(&self.original)
    }
}
