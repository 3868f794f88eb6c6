//! From prompts and image files to image files: the work of `kiln generate`, `kiln edit` and `kiln batch`.
//!
//! ```text
//! request ─► Session: check ─► embed ─► encode ─► denoise ─► decode ─► image files
//! ```
//!
//! A [`Session`] checks a request before anything is loaded, and loads a model in stages. It serves one request after another:
//! `generate`, `edit` and `batch` work on files, [`Images`] is a request in memory.

mod options;
mod lora_files;
mod request;
mod picture;
mod input;
mod embeddings;
mod worn;
mod generator;
mod session;
mod adapters;
mod preflight;
mod images;
mod group;
mod plan;
mod generate;
mod batch_report;
mod batch;

pub use batch::{BatchPlan, BatchRequest, batch, plan_batch};
#[cfg(feature = "cluster")]
pub(crate) use batch::{Task, finish, tasks};
#[cfg(feature = "cluster")]
pub(crate) use batch_report::name;
pub use batch_report::{BatchReport, Choices, ImageRecord, ModelTotals, Skipped};
pub use generate::{generate, plan};
pub(crate) use generator::{Batch, Embedded, Generator};
pub use images::Images;
pub use lora_files::LoraFiles;
pub use options::SamplingOptions;
pub(crate) use picture::resize;
#[cfg(feature = "cluster")]
pub(crate) use picture::save;
pub use request::GenerateRequest;
pub use session::Session;
pub use worn::Worn;
