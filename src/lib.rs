//! kiln fine-tunes image models on [Burn](https://burn.dev) and serves them: FLUX.1 with LoRA, and Stable Diffusion with
//! InstructPix2Pix, with LoRA or as a full model.
//!
//! ```text
//! config ─► data::prepare ─► cache ─► Batch ─► objective ─► backward ─► optimizer ─► checkpoint ─► export
//! weights ─► models ─► pipelines ─► images      (training lends its weights to validation)
//! ```
//!
//! A network is a list of segments that are lent, one at a time, to whoever needs them: [`lending`], [`models::Network`].
//! Training runs them forward keeping only what stands between them, then backward, one tape at a time:
//! [`training::step::backward`].
//!
//! Train as `kiln train` does, and get the run folder:
//!
//! ```no_run
//! use kiln::{device::DeviceChoice, training::{Silent, TrainConfig, train}};
//!
//! # fn main() -> kiln::error::Result<()> {
//! let device = DeviceChoice::Cpu.open(None, Default::default())?;
//! let config = TrainConfig::load("configs/quickstart.toml", &["training.max_steps=20".into()])?;
//! let run = train(&config, None, &device, &mut Silent)?;
//! println!("{}", run.display());
//! # Ok(())
//! # }
//! ```
//!
//! Generate, request after request, with an adapter:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use kiln::{device::DeviceChoice, generation::{Images, Session}};
//!
//! # fn main() -> kiln::error::Result<()> {
//! let device = DeviceChoice::Cpu.open(None, Default::default())?;
//! let mut session = Session::open("checkpoints/nano-flux", &device)?;
//! let lora = session.read_adapter("checkpoints/quickstart/quickstart.safetensors".as_ref())?;
//! session.set_adapters([(&lora, 0.8)])?;
//! let request = Images { prompts: vec!["red apple".into()], seeds: vec![1], width: 64, height: 64, ..Images::default() };
//! let made = session.make(&request, &mut |_| ControlFlow::Continue(()))?;
//! for (number, image) in made.finished().into_iter().flatten().enumerate() {
//!     image.save(format!("{number}.png")).expect("the folder can be written to");
//! }
//! # Ok(())
//! # }
//! ```
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
pub mod data;
pub mod pipelines;
pub mod families;
pub mod hub;
pub mod generation;
pub mod training;
pub mod serve;
pub mod bench;
pub mod selftest;
pub mod doctor;
pub mod cli;
