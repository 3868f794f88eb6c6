//! From pictures and captions, or edits, to training batches.
//!
//! ```text
//! folder ─► manifest ─► images, buckets ─► prepare (VAE, text encoders) ─► cache ─► dataset ─► batch
//! ```
//!
//! [`prepare()`] turns pictures into VAE moments and captions into embeddings, once, and keeps them in a cache that is
//! addressed by content; training reads a [`LatentDataset`] and never sees pixels or text. A [`Plan`] says which samples
//! make up which micro-batch, as a pure function of the seed, so that a loader has no state to save.

mod batch;
mod buckets;
mod cache;
mod captioned;
mod captions;
mod config;
mod dataset;
mod edits;
mod encoders;
mod fingerprint;
mod images;
mod listing;
mod manifest;
mod metadata;
mod parallel;
mod place;
mod plan;
mod pairs;
mod prepare;
mod progress;
mod source;
mod table;
mod text_file;

pub use batch::{Batch, HostBatch, Prefetch};
pub use buckets::Bucket;
pub use captioned::{CaptionFile, CaptionedFolder, CaptionedImage};
pub use config::DataConfig;
pub use dataset::{DatasetKind, LatentDataset, Picture, Sample, Split};
pub use encoders::Encoders;
pub use fingerprint::fingerprint;
pub use images::{decode_picture, picture_size, read_picture, to_pixels};
pub use place::{Cell, Place};
pub use plan::{Dropped, Plan, SampleIndex, joint_dropout};
pub use prepare::{Examined, examine, prepare};
pub use progress::{Phase, Progress};
