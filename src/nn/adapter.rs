//! Low-rank adapters, beside a network and not in it.
//!
//! A layer wears adapters only while it is lent. So switching them is lending with others: nothing is taken off or put back,
//! and one set of weights serves many sets of adapters at once.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};

use super::{Delta, Magnitude};
use crate::{
    kernels,
    rng::{Purpose, Seed},
};

/// The name of a layer in its checkpoint, such as `transformer_blocks.0.attn.to_q`.
pub type LayerName = String;

/// One change of one layer. The tensors are plain when the layer is only used, and leaves of the autodiff graph while they are
/// trained.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What is added to the weight, before [`scale`](Self::scale).
    pub delta: Delta,
    /// `alpha / rank`, times the strength asked for.
    pub scale: f64,
    /// Of a DoRA adapter: the length of every row of the changed weight.
    pub magnitude: Option<Magnitude>,
    /// Only while training, of a low-rank pair.
    pub dropout: Option<Dropout>,
}

impl Adapter {
    /// A low-rank pair: `a` `[rank, in]` and `b` `[out, rank]`, f32.
    pub fn low_rank(a: Tensor<2>, b: Tensor<2>, scale: f64) -> Self {
        Self { delta: Delta::LowRank { a, b }, scale, magnitude: None, dropout: None }
    }

    /// Itself, on `device`.
    pub fn to_device(mut self, device: &Device) -> Self {
        self.delta = self.delta.map(|tensor| tensor.to_device(device));
        self.magnitude = self.magnitude.map(|magnitude| magnitude.to_device(device));
        self
    }

    /// Its matrices, where it is nothing but a low-rank pair.
    pub(super) fn factors(&self) -> Option<kernels::Factors<'_>> {
        match (&self.delta, &self.magnitude, &self.dropout) {
            (Delta::LowRank { a, b }, None, None) => Some(kernels::Factors { a, b, scale: self.scale }),
            _ => None,
        }
    }

    /// `y` `[M, out]`, the output of its layer for `x` `[M, in]`, with what the adapter adds to it. The rows are those of
    /// `samples` samples.
    pub(super) fn add(&self, y: Tensor<2>, x: Tensor<2>, samples: usize) -> Tensor<2> {
        match &self.dropout {
            None => self.delta.add(y, x, self.scale),
            Some(dropout) => self.delta.add_with(y, x, self.scale, |u| dropout.apply(u, samples)),
        }
    }
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

/// Adapters of a network, by the names of their layers; those of one layer add up. Cheap to clone: nothing is copied.
#[derive(Clone, Debug, Default)]
pub struct Adapters(Arc<BTreeMap<LayerName, Arc<Vec<Adapter>>>>);

impl Adapters {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those whose layers' names begin with `path` and a dot, without these.
    pub fn below(&self, path: &str) -> Self {
        let of = |(name, adapters): (&LayerName, &Arc<Vec<Adapter>>)| {
            Some((name.strip_prefix(path)?.strip_prefix('.')?.to_string(), adapters.clone()))
        };
        Self(Arc::new(self.0.iter().filter_map(of).collect()))
    }

    /// Whether the layer has one.
    pub fn contains(&self, layer: &str) -> bool {
        self.0.contains_key(layer)
    }

    /// Of this layer.
    pub fn of(&self, layer: &str) -> &[Adapter] {
        self.0.get(layer).map_or(&[], |adapters| adapters)
    }

    /// These and others at once.
    pub fn and(mut self, others: &Self) -> Self {
        let all = Arc::make_mut(&mut self.0);
        for (layer, adapters) in &*others.0 {
            Arc::make_mut(all.entry(layer.clone()).or_default()).extend_from_slice(adapters);
        }
        self
    }

    /// The same with dropout in training; `seed` is that of the run, each layer's its own.
    pub fn dropping_out(mut self, probability: f64, seed: Seed, step: u64, first_sample: u64) -> Self {
        for (layer, adapters) in Arc::make_mut(&mut self.0) {
            let dropout = Dropout { probability, seed: seed.derive(layer), step, first_sample };
            Arc::make_mut(adapters).iter_mut().for_each(|adapter| adapter.dropout = Some(dropout.clone()));
        }
        self
    }

    /// Whether these are the others, and not only equal to them; none are none.
    pub fn are(&self, others: &Self) -> bool {
        Arc::ptr_eq(&self.0, &others.0) || (self.is_empty() && others.is_empty())
    }

    /// Of this layer, without a copy.
    pub(super) fn shared(&self, layer: &str) -> Arc<Vec<Adapter>> {
        self.0.get(layer).cloned().unwrap_or_default()
    }
}

impl FromIterator<(LayerName, Adapter)> for Adapters {
    fn from_iter<T: IntoIterator<Item = (LayerName, Adapter)>>(adapters: T) -> Self {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        adapters.into_iter().for_each(|(layer, adapter)| all.entry(layer).or_default().push(adapter));
        Self(Arc::new(all.into_iter().map(|(layer, adapters)| (layer, Arc::new(adapters))).collect()))
    }
}
