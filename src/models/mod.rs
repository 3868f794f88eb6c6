//! The networks, with the names their checkpoints use.

mod network;
mod noise;

pub mod clip;
pub mod flux;
pub mod text;
pub mod unet;
pub mod vae;

use burn::tensor::Tensor;

pub use network::{Change, Inputs, Network, Segment, State};
use network::{every, view};
pub use noise::draw_noise;

/// Divides the last axis among heads: `[B, L, N·K]` → `[B, N, L, K]`.
fn heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, heads, width / heads]).swap_dims(1, 2)
}
