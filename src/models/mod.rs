//! The networks, with the names their checkpoints use.

mod noise;
mod segments;

pub mod clip;
pub mod flux;
pub mod text;
pub mod unet;
pub mod vae;

use burn::tensor::Tensor;

pub use noise::draw_noise;
use segments::view;
pub use segments::{Change, Inputs, Segment, Segmented, State};

/// Divides the last axis among heads: `[B, L, N·K]` → `[B, N, L, K]`.
fn heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, heads, width / heads]).swap_dims(1, 2)
}
