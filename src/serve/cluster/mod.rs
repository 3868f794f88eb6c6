//! A server whose jobs are made on other machines.
//!
//! ```text
//! server: journal ─► Dispatch ─► stream of jobs ─► worker: Service ─► engine
//!                       ▲ ▲─ news ◄─────────────────┤
//!                       └── stream of ends ◄────────┤        (NATS JetStream)
//!                results ◄── depot ◄────────────────┘        (a folder, or S3)
//! ```
//!
//! The journal of the server knows every job that was accepted, so the queue may be lost and is filled again. A job stays in its
//! stream until a worker has put its end into the other one; a worker that is silent for too long loses it to another. The server
//! takes the first end of a job and no other. News (steps, previews) and wishes to cancel are told to whoever listens.

pub mod fingerprint;
pub mod messages;
pub mod depot;
pub mod line;
pub mod dispatch;
