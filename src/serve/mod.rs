//! `kiln serve`: jobs over HTTP, on models that stay loaded.
//!
//! ```text
//! HTTP ─► Service ─► journal ─► queue ─► engine ─► results
//! ```
//!
//! One thread, the engine, owns the device and the sessions; nothing else touches a tensor. Everybody else holds a [`Service`]: it
//! accepts jobs, which are in the journal before their acceptance is told, and tells what became of them.
//!
//! The engine advances all running images together, each at a step of its own, with adapters of its own. Images join and leave
//! between two steps.

pub mod config;
pub mod job;
mod service;

pub use service::{
    Accepted, CancelOutcome, LoraInfo, MemoryStatus, Missing, ModelDefaults, ModelInfo, QueueStatus, Refusal, Service,
    StatusInfo,
};
