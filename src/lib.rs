//! kiln fine-tunes image models on [Burn](https://burn.dev), from pictures to files that other programs load: FLUX.1 with LoRA,
//! and Stable Diffusion into a model that edits pictures by instruction, with LoRA or whole.
//!
//! ```text
//! config ─► data::prepare ─► cache ─► Batch ─► objective ─► backward ─► optimizer ─► checkpoint ─► export
//! weights ─► models ─► pipelines ─► pictures      (training lends its weights to validation)
//! ```
//!
//! A network is a list of segments that are lent, one at a time, to whoever needs them: [`lending`], [`models::Network`].
//! Training runs them forward keeping only what stands between them, then backward, one tape at a time:
//! [`training::step::backward`].
//!
//! In shapes, `B` is the batch, `C` channels, `H W` (or `h w`) the size of latents, `L` image tokens, `T` text tokens, `D` the
//! width, `N` heads, `K` the size of a head, `P` the width of the pooled text embedding, `M` rows of any kind.
#![warn(missing_docs)]

// The modules stand in dependency order: each imports only from those above it.
pub mod error;
pub mod notice;
pub mod panics;
pub mod paths;
pub mod stop;
pub mod disk;
pub mod config;
pub mod cuda;
pub mod device;
pub mod rng;
pub mod quantization;
pub mod weights;
pub mod limits;
pub mod kernels;
pub mod nn;
pub mod schedulers;
pub mod tokenizer;
pub mod lending;
pub mod models;
pub mod memory;
pub mod lora;
pub mod single_file;
pub mod hub;
pub mod data;
pub mod pipelines;
pub mod families;
pub mod generation;
pub mod training;
pub mod serve;
pub mod bench;
pub mod selftest;
pub mod doctor;
pub mod cli;
