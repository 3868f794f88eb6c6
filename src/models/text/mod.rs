//! Text encoders.

use burn::tensor::Tensor;

/// What the text encoders say about prompts.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    /// One vector for each token, `[B, L, D]`.
    pub prompt: Tensor<3>,
    /// One vector for each prompt, `[B, P]`.
    pub pooled: Tensor<2>,
}
