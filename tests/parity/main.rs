//! kiln computes what diffusers, transformers and PEFT compute: every part against a golden written by a script of this folder.

#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod clip_vision;
mod edit_pipeline;
mod edit_training;
mod flux;
mod lora;
mod pipeline;
mod quantized;
mod samplers;
mod schedule;
mod schedulers;
mod sd_pipeline;
mod text;
mod training;
mod unet;
mod unet_files;
mod vae;
