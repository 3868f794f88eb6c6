//! From prompts and picture files to picture files: what `kiln generate`, `kiln edit` and `kiln batch` do.
//!
//! ```text
//! request ─► Preflight ─► Session ─► Pipeline::generate ─► picture files
//! ```
//!
//! `Preflight` finds what is wrong with a request before anything is loaded;
//! `Session` loads a model in stages.

mod batch;
mod batch_report;
mod generate;
mod input;
mod options;
mod picture;
mod preflight;
mod session;

pub use batch::{BatchRequest, Choices, batch};
pub use batch_report::{BatchReport, Done, Skipped, Work};
pub use generate::{GenerateRequest, generate};
pub use options::SamplingOptions;
