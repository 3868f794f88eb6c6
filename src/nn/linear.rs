//! The linear layer, with LoRA adapters in activation space.

use burn::tensor::Tensor;

use crate::{
    kernels,
    rng::{Purpose, Seed},
    weights::Weights,
};

/// `y = x·Wᵀ + b`, plus `scale·(x·Aᵀ)·Bᵀ` for every attached adapter (Hu et al. 2021).
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`, in the dtype of the base model.
    pub weight: Tensor<2>,
    /// `[out]`.
    pub bias: Option<Tensor<1>>,
    /// Adapters that are in force; their contributions add up.
    pub adapters: Vec<Adapter>,
}

/// One low-rank pair on one layer. The tensors are plain when the layer is only used, and leaves of the autodiff graph
/// while it is trained.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[rank, in]`, f32.
    pub a: Tensor<2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<2>,
    /// `alpha / rank`, times the strength asked for.
    pub scale: f64,
    /// Only while training.
    pub dropout: Option<Dropout>,
}

/// Dropout on the adapter's input. The mask is a function of (seed, step, sample, layer): a block that is run a second time
/// for its backward pass drops the same numbers.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// In [0, 1).
    pub probability: f64,
    /// The seed of the run, mixed with the layer's name.
    pub seed: Seed,
    /// The optimizer step.
    pub step: u64,
    /// The number of the batch's first sample within the step.
    pub first_sample: u64,
}

impl Dropout {
    /// `x` with a share of its elements zero and the others scaled up to keep the mean. The first axis is the batch.
    fn apply<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let shape = x.dims();
        let each = shape[1..].iter().product();
        let mut mask = Vec::with_capacity(shape[0] * each);
        for sample in 0..shape[0] as u64 {
            let draws = self.seed.draw(Purpose::Dropout, self.step, self.first_sample + sample).uniform(each);
            let keep = 1.0 / (1.0 - self.probability) as f32;
            mask.extend(draws.iter().map(|&u| if f64::from(u) < self.probability { 0.0 } else { keep }));
        }
        let mask = burn::tensor::TensorData::new(mask, shape);
        let mask = Tensor::<D>::from_data(mask, &x.device().inner()).cast(x.dtype());
        let mask = kernels::lift(mask, &x);
        x * mask
    }
}

impl Linear {
    /// Takes `weight` `[outputs, inputs]` and, if the checkpoint has one, `bias` `[outputs]`.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> Self {
        Self {
            weight: kernels::laid_out(weights.tensor("weight", [outputs, inputs])),
            bias: weights.has("bias").then(|| weights.tensor("bias", [outputs])),
            adapters: Vec::new(),
        }
    }

    /// The last axis of `x` goes from `in` to `out`; the first axis is the batch.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let [outputs, inputs] = self.weight.dims();
        let rows = shape.iter().product::<usize>() / inputs;
        // Two axes only: products of more take a slower path in the backend.
        let flat = x.clone().reshape([rows, inputs]);
        let mut y = kernels::linear(flat.clone(), self.weight.clone(), self.bias.clone());
        for adapter in &self.adapters {
            let input = match &adapter.dropout {
                Some(dropout) => dropout.apply(x.clone()).reshape([rows, inputs]),
                None => flat.clone(),
            };
            y = kernels::low_rank(y, input, adapter.a.clone(), adapter.b.clone(), adapter.scale);
        }
        shape[D - 1] = outputs;
        y.reshape(shape)
    }
}

/// A part of a model that can name its linear layers: what LoRA targets, attaches to, merges into and exports from.
pub trait Linears {
    /// Calls `visit` with the checkpoint name and each linear layer, in a fixed order. `path` is the name of this part;
    /// names below it are joined with a dot.
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear));
}
