//! From images and captions, or edits, to training batches.
//!
//! ```text
//! folder ─► manifest ─► images, buckets ─► prepare (VAE, text encoders) ─► cache ─► dataset ─► batch
//! ```
//!
//! [`prepare()`] encodes images to VAE moments and captions to embeddings, once, in a content-addressed cache; training reads a
//! [`LatentDataset`] and never sees pixels or text. A [`BatchOrder`] assigns samples to micro-batches as a pure function of the seed,
//! so the loader has no state to save.

mod cache;
mod config;
mod buckets;
mod encoders;
mod fingerprint;
mod images;
mod listing;
mod parallel;
mod place;
mod progress;
mod sample;
mod manifest;
mod pairs;
mod batch_order;
mod batch;
mod dataset;
mod prefetch;
mod table;
mod source;
mod survey;
mod prepare;
mod text_file;
mod metadata;
mod caption_cell;
mod captions;
mod edits;
mod captioned;

pub use batch::{Batch, HostBatch};
pub use batch_order::{BatchOrder, Dropped, SampleIndex, joint_dropout};
pub use buckets::Bucket;
pub use caption_cell::CaptionCell;
pub use captioned::{CaptionFile, CaptionPlace, CaptionedFolder, CaptionedImage, Dated};
pub use config::DataConfig;
pub use dataset::{LatentDataset, Split};
pub use encoders::Encoders;
pub use fingerprint::fingerprint;
pub use images::{PICTURE_ENDINGS, decode_picture, picture_size, read_picture, to_pixels};
pub use place::{Cell, Place};
pub use prefetch::Prefetch;
pub use prepare::{Examined, examine, prepare};
pub use progress::{Phase, Progress};
pub use sample::{DatasetKind, Picture, Sample};
