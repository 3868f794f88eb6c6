//! From prompts and picture files to picture files: what `kiln generate`, `kiln edit` and `kiln batch` do.
//!
//! ```text
//! request ─► Session: check ─► embed ─► encode ─► denoise ─► decode ─► picture files
//! ```
//!
//! A [`Session`] finds what is wrong with a request before anything is loaded, and loads a model in stages. It serves one request
//! after another: `generate`, `edit` and `batch` are requests in files, [`Images`] are one in memory.

mod adapters;
mod batch;
mod batch_report;
mod embeddings;
mod generate;
mod group;
mod images;
mod input;
mod options;
mod picture;
mod plan;
mod preflight;
mod session;

pub use adapters::Worn;
pub use batch::{BatchRequest, Choices, batch};
pub use batch_report::{BatchReport, Done, Skipped, Work};
pub use generate::{GenerateRequest, generate, plan};
pub use images::Images;
pub use options::SamplingOptions;
pub use session::Session;
