//! `--device cuda` without a GPU: errors if something is missing, and the kernels on a stand-in.

mod kernels;
mod start;
