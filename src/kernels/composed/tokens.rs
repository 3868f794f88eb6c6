//! Values per sample, expanded to its tokens.

use burn::tensor::Tensor;

/// Expands one value per sample and channel to every token.
pub fn per_token(t: Tensor<2>) -> Tensor<3> {
    t.unsqueeze_dim(1)
}
