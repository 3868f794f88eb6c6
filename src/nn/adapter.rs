//! Adapters, kept beside a network and not inside it.
//!
//! A layer has adapters only while it is lent. Switching them means lending with others: nothing is detached or restored, and
//! one set of weights serves many sets of adapters at once.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};

use super::{Delta, Magnitude};
use crate::{
    kernels,
    rng::{Purpose, Seed},
};

/// The name of a layer in its checkpoint, such as `transformer_blocks.0.attn.to_q`.
pub type LayerName = String;

/// One adapter of one layer. In training its tensors are leaves of the autodiff graph; in inference they are off-tape.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The change of the weight, before [`scale`](Self::scale).
    pub delta: Delta,
    /// `alpha / rank` times the LoRA scale.
    pub scale: f64,
    /// For DoRA: the norm of each row of the changed weight.
    pub magnitude: Option<Magnitude>,
    /// Dropout of a low-rank pair; only in training.
    pub dropout: Option<Dropout>,
}

impl Adapter {
    /// A low-rank pair: `a` `[rank, in]` and `b` `[out, rank]`, f32.
    pub fn low_rank(a: Tensor<2>, b: Tensor<2>, scale: f64) -> Self {
        Self { delta: Delta::LowRank { a, b }, scale, magnitude: None, dropout: None }
    }

    /// Moves it to `device`.
    pub fn to_device(mut self, device: &Device) -> Self {
        self.delta = self.delta.map(|tensor| tensor.to_device(device));
        self.magnitude = self.magnitude.map(|magnitude| magnitude.to_device(device));
        self
    }

    /// Its two matrices, if it is a plain low-rank pair.
    pub(super) fn factors(&self) -> Option<kernels::Factors<'_>> {
        match (&self.delta, &self.magnitude, &self.dropout) {
            (Delta::LowRank { a, b }, None, None) => Some(kernels::Factors { a, b, scale: self.scale }),
            _ => None,
        }
    }

    /// Adds the adapter's contribution for `x` `[M, in]` to `y` `[M, out]`, the output of its layer. The rows belong to `samples`
    /// samples.
    pub(super) fn add(&self, y: Tensor<2>, x: Tensor<2>, samples: usize) -> Tensor<2> {
        match &self.dropout {
            None => self.delta.add(y, x, self.scale),
            Some(dropout) => self.delta.add_with(y, x, self.scale, |u| dropout.apply(u, samples)),
        }
    }
}

/// Dropout inside an adapter, on `x·Aᵀ` (as kohya's `network_dropout`): the mask has `rank` values per token, where one on `x`
/// would have thousands. It is a function of (seed, step, sample, layer), so a block that is recomputed for the backward pass
/// drops the same values.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// The share of values that are dropped, in [0, 1).
    pub probability: f64,
    /// The seed of the run, mixed with the layer's name.
    pub seed: Seed,
    /// The optimizer step.
    pub step: u64,
    /// The index of the batch's first sample within the step.
    pub first_sample: u64,
}

impl Dropout {
    /// Sets a share of the elements of `u` `[rows, rank]` to zero and scales up the others to keep the mean. The rows belong to
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
        let mask = kernels::on_tape_of(mask, &u);
        u * mask
    }
}

/// The adapters of a network, by layer name; those of one layer add up. Cheap to clone: tensors are shared.
#[derive(Clone, Debug, Default)]
pub struct Adapters(Arc<BTreeMap<LayerName, Arc<Vec<Adapter>>>>);

impl Adapters {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The adapters whose layer names begin with `path` and a dot, with that prefix removed.
    pub fn below(&self, path: &str) -> Self {
        let of = |(name, adapters): (&LayerName, &Arc<Vec<Adapter>>)| {
            Some((name.strip_prefix(path)?.strip_prefix('.')?.to_string(), adapters.clone()))
        };
        Self(Arc::new(self.0.iter().filter_map(of).collect()))
    }

    /// Whether the layer has an adapter.
    pub fn contains(&self, layer: &str) -> bool {
        self.0.contains_key(layer)
    }

    /// The adapters of this layer.
    pub fn of(&self, layer: &str) -> &[Adapter] {
        self.0.get(layer).map_or(&[], |adapters| adapters)
    }

    /// Combines these with others.
    pub fn and(mut self, others: &Self) -> Self {
        let all = Arc::make_mut(&mut self.0);
        for (layer, adapters) in &*others.0 {
            Arc::make_mut(all.entry(layer.clone()).or_default()).extend_from_slice(adapters);
        }
        self
    }

    /// Adds dropout for training. `seed` is that of the run; each layer derives its own from it.
    pub fn dropping_out(mut self, probability: f64, seed: Seed, step: u64, first_sample: u64) -> Self {
        for (layer, adapters) in Arc::make_mut(&mut self.0) {
            let dropout = Dropout { probability, seed: seed.derive(layer), step, first_sample };
            Arc::make_mut(adapters).iter_mut().for_each(|adapter| adapter.dropout = Some(dropout.clone()));
        }
        self
    }

    /// Whether these are identical to the others (the same shared tensors, not only equal values); two empty sets are.
    pub fn are(&self, others: &Self) -> bool {
        Arc::ptr_eq(&self.0, &others.0) || (self.is_empty() && others.is_empty())
    }

    /// The adapters of this layer, shared.
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
