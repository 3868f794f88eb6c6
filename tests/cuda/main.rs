//! `--device cuda` without a GPU: what is said where something is missing, and products on a stand-in.

mod products;
mod start;
