//! Loops over the tokens of a batch, `[B, L, D]`, with values per sample, `[B, D]`.

use super::{
    loops::{Uninit, build, column_sums},
    tensor::{raw_tensor, tensor},
};
use crate::kernels::operation::RawTensor;

/// Builds `[B, L, D]`, where `write` fills the row of each token.
pub fn build_tokens([batch, tokens, width]: [usize; 3], write: impl Fn(usize, usize, &mut Uninit) + Sync) -> RawTensor {
    let numbers = build(
        batch * tokens * width,
        width,
        #[inline(always)]
        |row, place| write(row / tokens, row % tokens, place),
    );
    raw_tensor(tensor(numbers, [batch, tokens, width]))
}

/// Builds `[B, D]`: for each sample the sums over its tokens that `add` accumulates.
pub fn sum_tokens([batch, tokens, width]: [usize; 3], add: impl Fn(usize, usize, &mut [f32]) + Sync) -> RawTensor {
    let mut sums = Vec::with_capacity(batch * width);
    for b in 0..batch {
        sums.extend(column_sums(
            tokens,
            width,
            #[inline(always)]
            |token, sums| add(b, token, sums),
        ));
    }
    raw_tensor(tensor(sums, [batch, width]))
}
