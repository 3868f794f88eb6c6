//! kiln fine-tunes image models on [Burn](https://burn.dev).
#![warn(missing_docs)]

// The modules stand in dependency order: each imports only from those above it.
pub mod error;
pub mod config;
pub mod rng;
pub mod weights;
pub mod kernels;
pub mod nn;
pub mod schedulers;
pub mod tokenizer;
pub mod models;
pub mod memory;
pub mod hub;
pub mod lora;
pub mod data;
pub mod pipelines;
pub mod training;
pub mod cli;
