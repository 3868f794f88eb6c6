//! Images from the command line and from a session.

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod edit;
mod exhausted;
mod generate;
mod levels;
mod session;
