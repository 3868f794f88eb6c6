//! The inputs of the transformer.

use burn::tensor::Tensor;

use super::Rope;
use crate::{limits::Limits, models::Inputs};

/// The inputs of one call of the transformer.
#[derive(Clone, Debug)]
pub struct FluxInputs {
    /// Packed noisy latents `[B, L, 4·C]`.
    pub img: Tensor<3>,
    /// T5 embeddings `[B, T, joint_attention_dim]`.
    pub txt: Tensor<3>,
    /// Pooled CLIP embedding `[B, pooled_projection_dim]`.
    pub pooled: Tensor<2>,
    /// The noise level `[B]`, in [0, 1], f32.
    pub sigma: Tensor<1>,
    /// Guidance scale `[B]`, f32; models without a guidance embedding ignore it.
    pub guidance: Tensor<1>,
    /// The rotation of all `T + L` tokens.
    pub rope: Rope,
    /// Limits on how much is computed at once.
    pub limits: Limits,
}

impl Inputs for FluxInputs {
    fn tracked(&self) -> Self {
        Self {
            img: Tensor::from_inner(self.img.clone()),
            txt: Tensor::from_inner(self.txt.clone()),
            pooled: Tensor::from_inner(self.pooled.clone()),
            sigma: Tensor::from_inner(self.sigma.clone()),
            guidance: Tensor::from_inner(self.guidance.clone()),
            rope: Rope {
                cos: Tensor::from_inner(self.rope.cos.clone()),
                sin: Tensor::from_inner(self.rope.sin.clone()),
            },
            limits: self.limits,
        }
    }

    fn rows(&self) -> usize {
        self.img.dims()[0]
    }
}
