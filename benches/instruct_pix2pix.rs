//! Training and sampling of a small editing UNet beside the same work in PyTorch: time and peak memory.
//!
//! The model has the layout of Stable Diffusion 1.5 with 8 input channels, at 35 M parameters: 64, 128, 256 and 256
//! channels, 2 residual blocks a level, 8 heads, random weights, f32; its input is 32 × 32 latents and 77 text tokens.
//! The cases:
//!
//! - `train`: one step of full fine-tuning on a batch of 2: draw noise and timesteps, forward, backward, clip by the
//!   common norm, AdamW. Every activation is kept.
//! - `train_checkpointing`: the same step, keeping only what enters each block.
//! - `sample`: 8 Euler ancestral steps of three rows, as many as the two guidance scales of one picture need.
//!
//! VAE and text encoder are left out on both sides. How it is run and measured: `benches/support/mod.rs`; what runs is
//! that of `kiln bench`.

mod support;

use burn::tensor::Device;
use kiln::bench::{Trained, UNetBench};

fn main() {
    support::main("ip2p", |case| {
        support::setup(case, 3, Some(Trained::Full), |case| UNetBench::new(case, &Device::flex()))
    });
}
