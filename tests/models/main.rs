//! Models and adapters in files and in memory: reading, lending, limits, quantization and writing.

#[path = "../support/mod.rs"]
mod support;

mod lending;
mod limits;
mod lora_files;
mod lora_layers;
mod lora_unet;
mod quantized;
mod quantized_files;
mod single_file;
mod unet_files;
