//! The parameters of formulas that have several implementations.

use burn::tensor::Tensor;

/// The factors of a LoRA adapter, for `low_rank_by_sample`.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// `[rank, in]`, f32.
    pub a: &'a Tensor<2>,
    /// `[out, rank]`, f32.
    pub b: &'a Tensor<2>,
    /// The scale of the product.
    pub scale: f64,
}

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// As [`gelu_tanh`](super::gelu_tanh).
    GeluTanh,
    /// As [`silu`](super::silu).
    Silu,
}

/// √(2/π).
pub const ROOT: f32 = 0.797_884_6;
/// The coefficient of the cube in the tanh form of GELU.
pub const CUBIC: f32 = 0.044715;

/// Normalization over groups of channels.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    pub groups: usize,
    pub epsilon: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// The factors of an AdamW update.
pub struct AdamWFactors {
    /// The share of the parameter that remains after weight decay.
    pub keep: f64,
    /// The learning rate, with the bias correction of the first moment.
    pub rate: f64,
    /// The root of the bias correction of the second moment.
    pub root: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
}

impl AdamWFactors {
    /// `[keep, rate, root, 1 - β₁, β₂, 1 - β₂, ε]`.
    pub fn in_f32(&self) -> [f32; 7] {
        let &Self { keep, rate, root, beta1, beta2, epsilon } = self;
        [keep, rate, root, 1.0 - beta1, beta2, 1.0 - beta2, epsilon].map(|factor| factor as f32)
    }
}

/// The number of parameters that AdamW updates in one launch on a GPU: the kernel has the code for each.
pub const UPDATES_PER_LAUNCH: usize = 24;
