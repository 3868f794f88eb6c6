//! Training and sampling of a small FLUX transformer beside the same work in PyTorch: time and peak memory.
//!
//! The model has the shape of FLUX.1 at 71 M parameters: width 512, 4 double and 8 single blocks, random weights, f32;
//! its input is 256 image and 64 text tokens. The cases:
//!
//! - `train`: one LoRA step on a batch of 2 (rank 16 on diffusers' default layers): draw noise and noise levels,
//!   forward, backward, clip by the common norm, AdamW. Every activation is kept.
//! - `train_checkpointing`: the same step, keeping only what enters each block.
//! - `sample`: 8 calls of the transformer with an Euler step after each, batch 1.
//!
//! VAE and text encoders are left out on both sides. How it is run and measured: `benches/support/mod.rs`; what runs is
//! that of `kiln bench`.

mod support;

use burn::tensor::Device;
use kiln::bench::{FluxBench, Trained};

fn main() {
    support::main("flux", |case| {
        support::setup(case, 1, Some(Trained::Attention), |case| FluxBench::new(case, &Device::flex()))
    });
}
