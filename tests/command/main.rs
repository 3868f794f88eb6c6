//! The program as a user meets it, and bad input from people and damaged disks: one clear error, nothing silently skipped.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod bench;
mod bounds;
mod cli;
mod fuzz;
mod fuzz_records;
mod paths;
mod selftest;
mod unused;
