//! Numbers that each sample has once, beside its tokens.

use burn::tensor::Tensor;

/// A number per sample and channel, at every token.
pub fn per_token(t: Tensor<2>) -> Tensor<3> {
    t.unsqueeze_dim(1)
}
