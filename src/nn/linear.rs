//! The linear layer.

use burn::tensor::{Device, Tensor};

use super::{Adapter, Adapters, Conv2d, Delta, Magnitude, Weight, Worn, delta::add_to_bias};
use crate::{
    kernels::{self, Activation},
    nn::{LayerName, Parameter, Parameters, below},
    weights::Weights,
};

/// `y = x·Wᵀ + b`, plus `scale·(x·Aᵀ)·Bᵀ` for every attached adapter (Hu et al. 2021).
///
/// An adapter acts on the activation, never on the weight: otherwise a dense `W + s·B·A` per layer would be kept for the backward pass.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    /// `[out]`.
    bias: Option<Tensor<1>>,
    pointwise: bool,
    /// The adapters attached while it is lent.
    pub(super) worn: Worn,
}

/// Name and sizes of a linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Its name in the checkpoint.
    pub name: LayerName,
    /// The size of the input's last axis.
    pub inputs: usize,
    /// The size of the output's last axis.
    pub outputs: usize,
    /// Whether the checkpoint stores the weight as a 1×1 convolution, `[out, in, 1, 1]`: other programs then expect an adapter's
    /// matrices in that shape, too.
    pub pointwise: bool,
}

impl LayerShape {
    /// The linear layers of the part of a model named `path`, in order.
    pub fn all(path: &str, part: &mut (impl Linears + ?Sized)) -> Vec<Self> {
        let mut all = Vec::new();
        part.linears(path, &mut |name, layer| {
            let [outputs, inputs] = layer.weight.dims();
            all.push(Self { name: name.into(), inputs, outputs, pointwise: layer.pointwise });
        });
        all
    }

    /// The convolutions of the part, with their kernels as matrices `[out, in · kernel²]`.
    pub fn convolutions(path: &str, part: &mut (impl Linears + ?Sized)) -> Vec<Self> {
        let mut all = Vec::new();
        part.convolutions(path, &mut |name, layer| {
            let [outputs, inputs] = layer.matrix_dims();
            all.push(Self { name: name.into(), inputs, outputs, pointwise: false });
        });
        all
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
        let linear = Self::new(Weight::load(weights, [outputs, inputs], pointwise));
        if pointwise { linear.pointwise() } else { linear }
    }

    /// A layer without a bias.
    pub fn new(weight: Weight) -> Self {
        Self { weight, bias: None, pointwise: false, worn: Worn::default() }
    }

    /// Marks the weight as stored as a 1×1 convolution in the checkpoint.
    pub fn pointwise(self) -> Self {
        Self { pointwise: true, ..self }
    }

    /// Its matrix.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The device of its weight.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// Merges `adapter` into the weight, or the bias: computed in f32, rounded once to the weight's dtype.
    pub fn merge(&mut self, adapter: &Adapter) {
        if let Delta::Bias(change) = &adapter.delta {
            self.bias = Some(add_to_bias(self.bias.take(), change.clone() * adapter.scale, self.weight.dtype()));
            return;
        }
        let mut change = adapter.delta.dense() * adapter.scale;
        if let Some(magnitude) = &adapter.magnitude {
            let own = self.weight.to_f32();
            let changed = own.clone() + change;
            change = changed.clone() * magnitude.gain(|| changed).unsqueeze_dim(1) - own;
        }
        self.weight.add(change);
    }

    /// The attached adapters, for training.
    pub fn worn_mut(&mut self) -> &mut [Adapter] {
        self.worn.trained()
    }

    /// Whether each row of the output depends only on its row of the input; not the case for adapters with dropout.
    pub fn is_by_rows(&self) -> bool {
        self.worn.sets().flatten().all(|adapter| adapter.dropout.is_none())
    }

    /// Maps the last axis of `x` from `in` to `out`; the first axis is the batch.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (shape, samples, x) = self.flat(x);
        self.worn_by(self.product(x.clone(), samples), x, samples).reshape(shape)
    }

    /// The tanh form of GELU of [`forward`](Self::forward).
    pub fn forward_gelu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        const KIND: Activation = Activation::GeluTanh;
        let (shape, samples, x) = self.flat(x);
        let adapters = self.worn.of_all();
        // What is added last takes the activation along.
        let last = adapters.and_then(<[Adapter]>::split_last);
        match (adapters, last.and_then(|(last, before)| Some((last.factors()?, before)))) {
            (Some([]), _) => self.weight.product_activated(x, self.bias.clone(), self.alone(samples), KIND, shape),
            (_, Some((factors, before))) => {
                let y = self.wear(before, self.product(x.clone(), samples), x.clone(), samples);
                kernels::low_rank_activated(y, x, factors, KIND, shape)
            }
            _ => kernels::activated(self.worn_by(self.product(x.clone(), samples), x, samples).reshape(shape), KIND),
        }
    }

    /// The shape of the output for `x`, the number of samples, and `x` as a matrix: products of higher rank take a slower path in the
    /// backend. All terms use this one view of `x`, so its gradient is one sum in one order, with and without recomputation.
    fn flat<const D: usize>(&self, x: Tensor<D>) -> ([usize; D], usize, Tensor<2>) {
        let mut shape = x.dims();
        let [outputs, inputs] = self.weight.dims();
        let flat = x.reshape([shape.iter().product::<usize>() / inputs, inputs]);
        shape[D - 1] = outputs;
        (shape, shape[0], flat)
    }

    /// How many samples must get the same bits as alone.
    fn alone(&self, samples: usize) -> usize {
        if self.worn.is_by_row() { samples } else { 1 }
    }

    fn product(&self, x: Tensor<2>, samples: usize) -> Tensor<2> {
        self.weight.product(x, self.bias.clone(), self.alone(samples))
    }

    fn worn_by(&self, y: Tensor<2>, x: Tensor<2>, samples: usize) -> Tensor<2> {
        match self.worn.of_all() {
            Some(adapters) => self.wear(adapters, y, x, samples),
            None => self.wear_by_row(y, x, samples),
        }
    }

    /// Adds the adapters' contributions for `x` `[M, in]` to `y` `[M, out]`, the output of the layer. The rows belong to `samples`
    /// samples.
    fn wear(&self, adapters: &[Adapter], mut y: Tensor<2>, x: Tensor<2>, samples: usize) -> Tensor<2> {
        let own = adapters.iter().any(|adapter| adapter.magnitude.is_some()).then(|| y.clone());
        for adapter in adapters {
            y = match (&adapter.magnitude, &own) {
                (Some(magnitude), Some(own)) => y + self.stretched(adapter, magnitude, own.clone(), x.clone()),
                _ => adapter.add(y, x.clone(), samples),
            };
        }
        y
    }

    /// The same where each sample has its own adapters and is computed on its own.
    fn wear_by_row(&self, y: Tensor<2>, x: Tensor<2>, samples: usize) -> Tensor<2> {
        let factors = self.worn.sets().map(|adapters| adapters.iter().map(Adapter::factors).collect());
        if let Some(factors) = factors.collect::<Option<Vec<Vec<_>>>>() {
            return kernels::low_rank_by_sample(y, x, samples, &factors);
        }
        let rows = x.dims()[0] / samples;
        let each = y.split(rows, 0).into_iter().zip(x.split(rows, 0));
        let worn = each.enumerate().map(|(row, (y, x))| self.wear(self.worn.of(row), y, x, 1));
        Tensor::cat(worn.collect(), 0)
    }

    /// The contribution of a DoRA adapter to the layer's `own` output `[M, out]` for `x` `[M, in]`: `(g − 1)·x·Wᵀ + g·scale·x·ΔWᵀ`,
    /// where the gain `g` rescales the rows of the changed weight to the adapter's norms. The bias is not rescaled.
    fn stretched(&self, adapter: &Adapter, magnitude: &Magnitude, own: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let changed = || self.weight.to_f32() + adapter.delta.dense() * adapter.scale;
        let gain = magnitude.gain(changed).cast(own.dtype()).unsqueeze_dim::<2>(0);
        let without_bias = match &self.bias {
            Some(bias) => own - bias.clone().unsqueeze_dim(0),
            None => own,
        };
        without_bias * (gain.clone() - 1.0) + adapter.delta.product(x, adapter.scale) * gain
    }
}

/// `weight` and `bias`; adapters are not included.
impl Parameters for Linear {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.weight.parameters(&below(path, "weight"), visit);
        if let Some(bias) = &mut self.bias {
            visit(&below(path, "bias"), Parameter::Vector(bias));
        }
    }
}

/// A part of a model that can list its linear layers: those that LoRA targets, attaches to and merges into.
pub trait Linears {
    /// Calls `visit` with the checkpoint name and each linear layer, in a fixed order. `path` is the name of this part;
    /// names below it are joined with a dot.
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear));

    /// The same for its convolutions, which only adapters from other programs change. Most parts of models have none.
    fn convolutions(&mut self, _path: &str, _visit: &mut dyn FnMut(&str, &mut Conv2d)) {}
}

impl Adapters {
    /// Attaches them to the layers of a part of a network, named below `path`, replacing those attached before.
    pub fn put_on(&self, path: &str, part: &mut (impl Linears + ?Sized)) {
        dress(path, part, |name| Worn::by_all(self.shared(name)));
    }

    /// Attaches one element of `rows` to each row of a batch, in the layers of a part. From then on, on the CPU in f32, each row gets
    /// the same bits as alone, even in layers without adapters.
    pub fn put_on_rows(rows: &[Self], path: &str, part: &mut (impl Linears + ?Sized)) {
        dress(path, part, |name| Worn::by_row(rows.iter().map(|adapters| adapters.shared(name)).collect()));
    }
}

/// Attaches to every layer of the part named `path` what `worn` returns for the layer's name.
fn dress(path: &str, part: &mut (impl Linears + ?Sized), worn: impl Fn(&str) -> Worn) {
    part.linears(path, &mut |name, layer| layer.worn = worn(name));
    part.convolutions(path, &mut |name, layer| layer.worn = worn(name));
}
