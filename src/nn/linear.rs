//! The linear layer, with LoRA adapters in activation space.

use burn::tensor::{FloatDType, Tensor, TensorData};

use crate::{
    kernels,
    nn::{Parameter, Parameters, below},
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
    /// Whether the checkpoint has the weight as that of a 1×1 convolution, `[out, in, 1, 1]`: then other programs expect the
    /// matrices of an adapter in such a shape, too.
    pub pointwise: bool,
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

/// Dropout inside an adapter, on `x·Aᵀ` (as kohya's `network_dropout`): the mask has `rank` numbers for each token, where one
/// on `x` would have thousands. It is a function of (seed, step, sample, layer): a block that is run a second time for its
/// backward pass drops the same numbers.
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
    /// `u` `[rows, rank]` with a share of its elements zero and the others scaled up to keep the mean. The rows are those of
    /// `samples` samples, equally many of each, one sample after the other.
    fn apply(&self, u: Tensor<2>, samples: usize) -> Tensor<2> {
        let shape = u.dims();
        let each = shape[0] * shape[1] / samples;
        let keep = 1.0 / (1.0 - self.probability) as f32;
        let mask = (self.first_sample..).take(samples).flat_map(|sample| {
            let draws = self.seed.draw(Purpose::Dropout, self.step, sample).uniform(each);
            draws.into_iter().map(|draw| if f64::from(draw) < self.probability { 0.0 } else { keep })
        });
        let mask = TensorData::new(mask.collect::<Vec<f32>>(), shape);
        let mask = Tensor::<2>::from_data(mask, &u.device().inner()).cast(u.dtype());
        let mask = kernels::lift(mask, &u);
        u * mask
    }
}

impl Linear {
    /// Takes `weight` `[outputs, inputs]`, or `[outputs, inputs, 1, 1]`, and `bias` `[outputs]`.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> Self {
        Self { bias: Some(weights.tensor("bias", [outputs])), ..Self::load_without_bias(weights, inputs, outputs) }
    }

    /// Takes `weight` `[outputs, inputs]`, or `[outputs, inputs, 1, 1]`.
    pub fn load_without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Self {
        let pointwise = weights.shape("weight").is_some_and(|shape| shape.len() == 4);
        let weight = if pointwise {
            weights.tensor("weight", [outputs, inputs, 1, 1]).flatten(1, 3)
        } else {
            weights.tensor("weight", [outputs, inputs])
        };
        Self { weight: kernels::laid_out(weight), bias: None, pointwise, adapters: Vec::new() }
    }

    /// The last axis of `x` goes from `in` to `out`; the first axis is the batch.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let [outputs, inputs] = self.weight.dims();
        let rows = shape.iter().product::<usize>() / inputs;
        // Two axes only: products of more take a slower path in the backend.
        // All use this one view of `x`, so that its gradient is one sum, in one order, whatever is kept for going back.
        let flat = x.reshape([rows, inputs]);
        let mut y = kernels::linear(flat.clone(), self.weight.clone(), self.bias.clone());
        for Adapter { a, b, scale, dropout } in &self.adapters {
            y = match dropout {
                None => kernels::low_rank(y, flat.clone(), a.clone(), b.clone(), *scale),
                Some(dropout) => {
                    let dtype: FloatDType = flat.dtype().into();
                    let u = kernels::matmul(flat.clone(), a.clone().cast(dtype).transpose());
                    y + kernels::matmul(dropout.apply(u, shape[0]), b.clone().cast(dtype).transpose()) * *scale
                }
            };
        }
        shape[D - 1] = outputs;
        y.reshape(shape)
    }
}

/// `weight` and `bias`; adapters are not among them.
impl Parameters for Linear {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(&below(path, "weight"), Parameter::Matrix(&mut self.weight));
        if let Some(bias) = &mut self.bias {
            visit(&below(path, "bias"), Parameter::Vector(bias));
        }
    }
}

/// A part of a model that can name its linear layers: what LoRA targets, attaches to, merges into and exports from.
pub trait Linears {
    /// Calls `visit` with the checkpoint name and each linear layer, in a fixed order. `path` is the name of this part;
    /// names below it are joined with a dot.
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear));
}
