//! Samples of a dataset: images with captions, or edits.

use serde::{Deserialize, Serialize};

use super::{Bucket, Place};

/// The kind of data in a folder.
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
    /// Its location.
    #[serde(flatten)]
    pub place: Place,
    /// BLAKE3 hash of the file, which identifies the image.
    pub hash: String,
    /// Its size in pixels, after the EXIF orientation.
    pub size: (usize, usize),
    /// The size it is trained at.
    pub bucket: Bucket,
    /// The keys of its latents: plain and, if `data.flip` is on, mirrored.
    pub latents: Vec<String>,
    /// Length and modification time of the file when it was inspected; while these and `changed` are the same, it is not read again.
    pub(super) stamp: Stamp,
    /// The time of the last change of the file's inode, in nanoseconds since 1970: unlike the time in `stamp`, no program can set it. 0 on
    /// systems without it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) changed: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The length of a file and its modification time in nanoseconds since 1970.
pub(super) type Stamp = (u64, u64);

/// A training sample: an image and its caption, or an edit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The image; of an edit, the edited image.
    pub picture: Picture,
    /// The original of an edit, in the bucket of the edited image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Picture>,
    /// The caption, with the trigger word; of an edit, the instruction.
    pub caption: String,
    /// The key of the caption's embeddings.
    pub prompt: String,
    /// How often it counts in an epoch, before `data.repeats`: more than once only in a folder whose name says so.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeats: usize,
    /// The caption of the original, if given. Used for evaluation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_caption: Option<String>,
    /// The caption of the edited image, if given. Used for evaluation only.
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
    /// The image that decides the side of the split: of an edit the original, so that all edits of one image are on one side.
    pub(super) fn subject(&self) -> &Picture {
        self.original.as_ref().unwrap_or(&self.picture)
    }

    /// The image, and the original of an edit.
    pub(super) fn pictures(&self) -> impl Iterator<Item = &Picture> {
        std::iter::once(&self.picture).chain(&self.original)
    }
}
