//! From folders, tables and archives to examples.

#[path = "../support/mod.rs"]
mod support;

mod edits;
mod images;
