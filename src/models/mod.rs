//! The networks, with the names their checkpoints use.

mod embedding;
mod network;
mod noise;

pub mod clip;
pub mod flux;
pub mod text;
pub mod unet;
pub mod vae;

use std::ops::Range;

use burn::tensor::Tensor;

use crate::{kernels, limits::Limits, nn::Linear};

use network::view;
pub use network::{Change, Inputs, Network, Segment, State};
pub use noise::draw_noise;

/// Tokens that go through a feed-forward together at least. Of fewer rows, a matrix product may add up in another order.
const FEWEST_TOKENS: usize = 512;

/// The parts in which the tokens of `x` `[B, L, D]` go through a feed-forward of these `layers`; `None` where all go together.
fn token_parts(x: &Tensor<3>, limits: &Limits, layers: [&Linear; 2]) -> Option<Vec<Range<usize>>> {
    let [batch, tokens, _] = x.dims();
    let most = limits.feed_forward_tokens?;
    if x.device().is_autodiff() || !layers.iter().all(|layer| layer.is_by_rows()) {
        return None;
    }
    let parts = kernels::even_parts(tokens, most / batch, FEWEST_TOKENS.div_ceil(batch));
    (parts.len() > 1).then_some(parts)
}

/// `f`, which has these `layers`, of the tokens of `x` `[B, L, D]`, a few at a time if there is a limit.
fn by_tokens(x: Tensor<3>, limits: &Limits, layers: [&Linear; 2], f: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    match token_parts(&x, limits, layers) {
        Some(parts) => {
            let some = |part: Range<usize>| f(x.clone().narrow(1, part.start, part.len()));
            Tensor::cat(parts.into_iter().map(some).collect(), 1)
        }
        None => f(x),
    }
}

/// Divides the last axis among heads: `[B, L, N·K]` → `[B, N, L, K]`.
fn heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, heads, width / heads]).swap_dims(1, 2)
}

/// Puts them side by side again: `[B, N, L, K]` → `[B, L, N·K]`.
fn join_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, length, size] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, heads * size])
}
