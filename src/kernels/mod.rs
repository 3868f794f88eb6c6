//! The operations on which a transformer block spends its time, each as one function from tensors to tensors.
//!
//! In a chain of elementwise operations, each costs one pass over memory on a CPU and one launch on a GPU; behind these functions
//! they can be fused. Everything here works with off-tape and with autodiff tensors.

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
mod vjp;
mod residual;
mod rope;
mod upsample;

pub use activation::{activated, gelu_tanh, silu};
pub use adamw::{AdamW, Update, adamw, sum_of_squares};
pub use attention::{attention, attention_biased, attention_within};
pub use blockwise::Blockwise;
pub use conv::{conv2d, conv2d_by_sample, conv2d_rows};
pub use cpu::vectors;
pub use formulas::{Activation, Factors, UPDATES_PER_LAUNCH};
pub use geglu::geglu;
pub use group_norm::{group_norm, group_norm_rows, group_norm_silu};
pub use group_statistics::GroupStatistics;
pub use linear::{linear, linear_activated, linear_by_sample, prepack_weight};
pub use low_rank::{low_rank, low_rank_activated, low_rank_by_sample};
pub use matmul::matmul;
pub use norm::{layer_norm, layer_norm_modulate};
pub use packed::{PackedMatrix, linear_packed, linear_packed_by_sample};
pub use residual::gated_add;
pub use rope::rms_norm_rope;
pub use upsample::upsample_nearest;
pub use vjp::vjp_seed;

use std::ops::Range;

use burn::tensor::Tensor;

/// Moves a constant to the autodiff device of `like` if that is tracked: the pinned version of Burn panics when an off-tape tensor
/// meets a tracked one.
pub fn on_tape_of<const D: usize, const E: usize>(constant: Tensor<D>, like: &Tensor<E>) -> Tensor<D> {
    if like.device().is_autodiff() && !constant.device().is_autodiff() {
        Tensor::from_inner(constant)
    } else {
        constant
    }
}

/// Divides `count` items into as few parts as possible of at most `most` each, unless a part would have fewer than `least`; the sizes
/// differ by at most one.
pub(crate) fn even_parts(count: usize, most: usize, least: usize) -> Vec<Range<usize>> {
    let parts = count.div_ceil(most.max(1)).min(count / least.max(1)).max(1);
    (0..parts).map(|part| part * count / parts..(part + 1) * count / parts).collect()
}

/// What is made of a weight of so many bytes and this shape for one product: a matrix once more, or 16 values of each 9 of a kernel
/// that is not too large to be transformed on the CPU.
pub(crate) fn workspace(bytes: u64, shape: &[usize]) -> u64 {
    match *shape {
        [_, _] => bytes,
        [outputs, inputs, 3, 3] if outputs * inputs <= cpu::MOST_KERNELS => bytes * 16 / 9,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
