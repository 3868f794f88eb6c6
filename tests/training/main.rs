//! Runs from their first step to their export: what they learn, how they stop, and that they resume bit for bit.

#[path = "../support/mod.rs"]
mod support;

mod begun_before;
mod edit;
mod edits;
mod exhausted;
mod full;
mod resume;
mod stopping;
mod style;
mod tiny;
