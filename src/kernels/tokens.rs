//! Loops over the tokens of a batch, `[B, L, D]`, beside numbers that each sample has once, `[B, D]`.

use burn::tensor::Tensor;

use super::{
    cpu::{self, Fresh},
    operation::Plain,
};

/// A number per sample and channel, at every token.
pub(super) fn per_token(t: Tensor<2>) -> Tensor<3> {
    t.unsqueeze_dim(1)
}

/// `[B, L, D]`: for each token the row that `write` makes.
pub(super) fn build_tokens(
    [batch, tokens, width]: [usize; 3],
    write: impl Fn(usize, usize, &mut Fresh) + Sync,
) -> Plain {
    let numbers = cpu::build(
        batch * tokens * width,
        width,
        #[inline(always)]
        |row, place| write(row / tokens, row % tokens, place),
    );
    cpu::plain(cpu::tensor(numbers, [batch, tokens, width]))
}

/// `[B, D]`: for each sample the sums over its tokens that `add` builds up.
pub(super) fn sum_tokens([batch, tokens, width]: [usize; 3], add: impl Fn(usize, usize, &mut [f32]) + Sync) -> Plain {
    let mut sums = Vec::with_capacity(batch * width);
    for b in 0..batch {
        sums.extend(cpu::column_sums(
            tokens,
            width,
            #[inline(always)]
            |token, sums| add(b, token, sums),
        ));
    }
    cpu::plain(cpu::tensor(sums, [batch, width]))
}
