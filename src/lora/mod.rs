//! LoRA adapters: targets, files, merging.
