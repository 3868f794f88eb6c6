//! `--device cuda` without a GPU: errors if something is missing, and products on a stand-in.

mod products;
mod start;
