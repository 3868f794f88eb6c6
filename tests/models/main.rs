//! Models and adapters in files and in memory: what is read, lent, limited, quantized and written.

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
