//! The program as a person meets it, and what people and damaged disks put in: one clear error, nothing read past in silence.

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
