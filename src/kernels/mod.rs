//! The operations a transformer block spends its time on, each one function from tensors to tensors.
//!
//! Chains of elementwise operations cost one pass over memory each on a CPU and one launch each on a GPU; behind these
//! functions they can be one. Everything here works on plain and on autodiff tensors alike.

mod operation;
mod formulas;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dispatch;
mod matmul;
mod composed;

mod activation;
mod adamw;
mod attention;
mod blockwise;
mod conv;
mod geglu;
mod group_statistics;
mod group_norm;
mod linear;
mod low_rank;
mod norm;
mod packed;
mod pull;
mod residual;
mod rope;
mod upsample;

pub use activation::{gelu_tanh, silu};
pub use adamw::{AdamW, adamw, sum_of_squares};
pub use attention::{attention, attention_biased, attention_within};
pub use blockwise::Blockwise;
pub use conv::{conv2d, conv2d_by_sample, conv2d_rows};
pub use cpu::vectors;
pub use geglu::geglu;
pub use group_norm::{group_norm, group_norm_rows, group_norm_silu};
pub use group_statistics::GroupStatistics;
pub use linear::{laid_out, linear, linear_by_sample};
pub use low_rank::{Factors, low_rank, low_rank_by_sample};
pub use matmul::matmul;
pub use norm::{layer_norm, layer_norm_modulate};
pub use packed::{PackedMatrix, linear_packed, linear_packed_by_sample};
pub use pull::pull_back;
pub use residual::gated_add;
pub use rope::rms_norm_rope;
pub use upsample::upsample_nearest;

use std::ops::Range;

use burn::tensor::Tensor;

/// Brings a constant to where `like` lives: onto its autodiff device if it is being tracked. The pinned Burn panics when
/// a plain tensor meets a tracked one.
pub fn lift<const D: usize, const E: usize>(constant: Tensor<D>, like: &Tensor<E>) -> Tensor<D> {
    if like.device().is_autodiff() && !constant.device().is_autodiff() {
        Tensor::from_inner(constant)
    } else {
        constant
    }
}

/// `count` things in as few parts as have `most` each, if none must have fewer than `least`; the parts differ by one at most.
pub(crate) fn even_parts(count: usize, most: usize, least: usize) -> Vec<Range<usize>> {
    let parts = count.div_ceil(most.max(1)).min(count / least.max(1)).max(1);
    (0..parts).map(|part| part * count / parts..(part + 1) * count / parts).collect()
}

#[cfg(test)]
mod tests;
