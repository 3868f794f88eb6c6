//! The autoencoder between pixels and latents.

use burn::tensor::Tensor;

/// The posterior of latents.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[B, C, h, w]`
    pub mean: Tensor<4>,
    /// `[B, C, h, w]`
    pub log_variance: Tensor<4>,
}

impl Moments {
    /// From `[B, 2C, h, w]`: the means, then the log variances.
    pub fn from_tensor(moments: Tensor<4>) -> Self {
        let mut halves = moments.chunk(2, 1).into_iter();
        let mut half = || halves.next().expect("chunk gives two halves");
        Self { mean: half(), log_variance: half() }
    }

    /// As one tensor, `[B, 2C, h, w]`.
    pub fn into_tensor(self) -> Tensor<4> {
        Tensor::cat(vec![self.mean, self.log_variance], 1)
    }
}
