//! Lends the parts of a network one at a time; where a part lies in between is up to the lender.
//!
//! A resident part lies on the device and is lent as a borrow. A streamed part lies in the mapped file: it is read when it is
//! lent and dropped afterwards, while a thread prepares the next one. Adapters are attached to a view of the part as it is lent;
//! the part itself never has any.
//!
//! Both kinds are bit-identical. On the CPU a resident weight is prepacked once for its products and a streamed one is not: the
//! forward product transposes it instead, which takes the same time as prepacking it at every loan, and saves the backward
//! product from transposing it back.

mod streamed;
mod whole;

use std::{ops::Deref, sync::Arc};

use burn::tensor::Device;

use crate::{
    kernels,
    nn::{Adapters, LayerShape, Linears, Parameters},
    weights::Weights,
};
use streamed::Streamed;
pub use whole::Whole;

/// A part of a network that can be lent.
///
/// Its [`Parameters`] are all of its tensors, or none if the network is trained by adapters only; adapters are not included.
pub trait Part: Clone + Linears + Parameters + Send + Sync + 'static {
    /// Its name in the checkpoint; empty if its layers are at the top level.
    fn name(&self) -> &str;
}

/// The location of parts while they are not lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// On the device.
    #[default]
    Resident,
    /// In their file; at most two are on the device, the one that is lent and the next one.
    Streamed,
    /// In their file; only the one that is lent is on the device.
    Single,
}

/// The sizes of a list of parts on the device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The sum over all parts.
    pub total: u64,
    /// The largest part.
    pub largest: u64,
    /// The largest tensor, dense.
    pub tensor: u64,
    /// The largest workspace of one weight in a product: a dense or transposed matrix, or a transformed kernel.
    pub workspace: u64,
}

impl Sizes {
    /// The bytes that stay on the device between two uses with this residence.
    pub fn kept_at(self, residence: Residence) -> u64 {
        if residence == Residence::Resident { self.total } else { 0 }
    }

    /// The most bytes on the device at once, while they are used, with this residence: with the workspace, and, of streamed parts, with
    /// a tensor that is read in the meantime and is there twice.
    pub fn at(self, residence: Residence) -> u64 {
        let parts = match residence {
            Residence::Resident => self.total,
            Residence::Streamed => self.total.min(2 * self.largest) + self.tensor,
            Residence::Single => self.largest,
        };
        parts + self.workspace
    }
}

/// A part that is lent for the lifetime of this value.
#[derive(Debug)]
pub enum Lent<'a, P> {
    /// A resident part.
    Borrowed(&'a P),
    /// A part that was read for this loan, or a view of a resident one with adapters attached.
    Own(P),
}

impl<P> Deref for Lent<'_, P> {
    type Target = P;

    fn deref(&self) -> &P {
        match self {
            Self::Borrowed(part) => part,
            Self::Own(part) => part,
        }
    }
}

impl<P: Clone> Lent<'_, P> {
    /// The part as an owned value; tensors are shared with a resident part until they are changed.
    pub fn into_own(self) -> P {
        match self {
            Self::Borrowed(part) => part.clone(),
            Self::Own(part) => part,
        }
    }
}

/// All parts of a network, and what is known about them without reading their values.
#[derive(Clone, Debug)]
pub struct Lender<P> {
    source: Source<P>,
    facts: Arc<[Facts]>,
    device: Device,
    /// Whether streamed parts are read ahead of their loan.
    reads_ahead: bool,
    /// As in [`Sizes`].
    tensor: u64,
    workspace: u64,
}

#[derive(Clone, Debug)]
enum Source<P> {
    Resident(Vec<P>),
    Streamed(Arc<Streamed<P>>),
}

#[derive(Debug)]
struct Facts {
    name: String,
    layers: Vec<LayerShape>,
    /// The format of the first quantized layer, if there is one.
    quantized: Option<&'static str>,
    convolutions: Vec<LayerShape>,
    has_parameters: bool,
    /// Its size on the device.
    bytes: u64,
}

impl Facts {
    fn of(mut part: impl Part, bytes: u64) -> Self {
        let name = part.name().to_string();
        let mut has_parameters = false;
        part.parameters("", &mut |_, _| has_parameters = true);
        let mut quantized = None;
        part.linears("", &mut |_, layer| quantized = quantized.or(layer.weight().quantized()));
        let (layers, convolutions) = (LayerShape::all(&name, &mut part), LayerShape::convolutions(&name, &mut part));
        Self { name, layers, convolutions, quantized, has_parameters, bytes }
    }
}

#[allow(clippy::len_without_is_empty)] // no network is empty
impl<P: Part> Lender<P> {
    /// A lender of `count` parts, which `load` takes from the weights. The caller then calls [`Weights::finish`]: missing and
    /// misshapen tensors are found now, from headers alone if parts are streamed.
    pub fn new(
        weights: &Weights,
        residence: Residence,
        count: usize,
        load: impl Fn(&Weights, usize) -> P + Send + Sync + 'static,
    ) -> Self {
        let others = weights.taken();
        let measured = |weights: &Weights, index: usize| {
            let before = weights.bytes();
            let part = load(weights, index);
            (part, weights.bytes() - before)
        };
        let (source, facts): (_, Vec<_>) = match residence {
            Residence::Resident => {
                let parts: Vec<(P, u64)> = (0..count).map(|index| measured(weights, index)).collect();
                let facts = parts.iter().map(|(part, bytes)| Facts::of(part.clone(), *bytes)).collect();
                (Source::Resident(parts.into_iter().map(|(part, _)| part).collect()), facts)
            }
            Residence::Streamed | Residence::Single => {
                let headers = weights.unread();
                let facts = (0..count).map(|index| measured(&headers, index));
                let facts = facts.map(|(part, bytes)| Facts::of(part, bytes)).collect();
                let weights = weights.lent();
                (Source::Streamed(Arc::new(Streamed::new(move |index| load(&weights, index)))), facts)
            }
        };
        let reads_ahead = residence != Residence::Single;
        let taken = weights.taken();
        let own = || taken.iter().filter(|(name, _)| !others.contains_key(*name));
        let largest = |bytes: &dyn Fn(u64, &[usize]) -> u64| {
            own().map(|(name, shape)| bytes(weights.dense_bytes(name, shape), shape)).max().unwrap_or(0)
        };
        let (tensor, workspace) = (largest(&|bytes, _| bytes), largest(&kernels::workspace));
        let device = weights.device().clone();
        Self { source, facts: facts.into(), device, reads_ahead, tensor, workspace }
    }

    /// The number of parts.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// The sizes of the parts on the device.
    pub fn sizes(&self) -> Sizes {
        let bytes = || self.facts.iter().map(|facts| facts.bytes);
        let (total, largest) = (bytes().sum(), bytes().max().unwrap_or(0));
        Sizes { total, largest, tensor: self.tensor, workspace: self.workspace }
    }

    /// The device on which parts are lent.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All linear layers in their order.
    pub fn layers(&self) -> Vec<LayerShape> {
        self.facts.iter().flat_map(|facts| facts.layers.iter().cloned()).collect()
    }

    /// The format of the first quantized layer; `None` if there is none.
    pub fn quantized(&self) -> Option<&'static str> {
        self.facts.iter().find_map(|facts| facts.quantized)
    }

    /// All linear layers and convolutions, part by part: those that can have adapters of any kind.
    pub fn wearable(&self) -> Vec<LayerShape> {
        self.facts.iter().flat_map(|facts| facts.layers.iter().chain(&facts.convolutions).cloned()).collect()
    }

    /// The first part with a layer that has one of these adapters, if any.
    pub fn first_wearing(&self, adapters: &Adapters) -> Option<usize> {
        (0..self.len()).find(|&index| self.wears(index, adapters))
    }

    /// The first part with tensors to train, if any.
    pub fn first_with_parameters(&self) -> Option<usize> {
        self.facts.iter().position(|facts| facts.has_parameters)
    }

    /// Lends a part with its adapters attached.
    pub fn lend(&self, index: usize, adapters: Option<&Adapters>) -> Lent<'_, P> {
        let lent = match &self.source {
            Source::Resident(parts) => Lent::Borrowed(&parts[index]),
            Source::Streamed(streamed) => Lent::Own(streamed.lend(index)),
        };
        match adapters {
            Some(adapters) if self.wears(index, adapters) => {
                let mut part = lent.into_own();
                adapters.put_on(&self.facts[index].name, &mut part);
                Lent::Own(part)
            }
            _ => lent,
        }
    }

    /// Lends a part with separate adapters for each row of a batch; see [`Adapters::put_on_rows`].
    fn lend_by_row(&self, index: usize, rows: &[Adapters]) -> Lent<'_, P> {
        let mut part = self.lend(index, None).into_own();
        Adapters::put_on_rows(rows, &self.facts[index].name, &mut part);
        Lent::Own(part)
    }

    fn wears(&self, index: usize, adapters: &Adapters) -> bool {
        let Facts { layers, convolutions, .. } = &self.facts[index];
        layers.iter().chain(convolutions).any(|layer| adapters.contains(&layer.name))
    }

    /// Lends parts in this order, each while the next one is prepared. The caller drops one before it takes the next.
    pub fn walk<'a>(
        &'a self,
        order: impl IntoIterator<Item = usize> + 'a,
        adapters: Option<&'a Adapters>,
    ) -> impl Iterator<Item = Lent<'a, P>> {
        self.walk_with(order, move |index| self.lend(index, adapters))
    }

    /// The same with separate adapters for each row of a batch; see [`Adapters::put_on_rows`].
    pub fn walk_by_row<'a>(
        &'a self,
        order: impl IntoIterator<Item = usize> + 'a,
        rows: &'a [Adapters],
    ) -> impl Iterator<Item = Lent<'a, P>> {
        self.walk_with(order, move |index| self.lend_by_row(index, rows))
    }

    fn walk_with<'a>(
        &'a self,
        order: impl IntoIterator<Item = usize> + 'a,
        lend: impl Fn(usize) -> Lent<'a, P> + 'a,
    ) -> impl Iterator<Item = Lent<'a, P>> {
        let mut order = order.into_iter().peekable();
        std::iter::from_fn(move || {
            let lent = lend(order.next()?);
            if let (Source::Streamed(streamed), Some(&next), true) = (&self.source, order.peek(), self.reads_ahead) {
                streamed.prepare(next);
            }
            Some(lent)
        })
    }

    /// All parts, to be changed permanently.
    ///
    /// # Panics
    /// If parts are streamed: they are read again for each use.
    pub fn parts_mut(&mut self) -> &mut [P] {
        match &mut self.source {
            Source::Resident(parts) => parts,
            Source::Streamed(_) => panic!("weights that are streamed from their file cannot be changed"),
        }
    }

    /// Changes one part permanently; a streamed one is changed every time it is read.
    pub fn change(&mut self, index: usize, change: impl Fn(&mut P) + Send + Sync + 'static) {
        match &mut self.source {
            Source::Resident(parts) => change(&mut parts[index]),
            Source::Streamed(streamed) => *streamed = Arc::new(streamed.changed(index, change)),
        }
    }
}
