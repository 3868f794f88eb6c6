//! The parts of a network, lent one at a time to whoever needs them; where a part lies meanwhile is the lender's business.
//!
//! A resident part lies on the device and is lent as a borrow. A streamed one lies in the mapped file: it is read when it is
//! lent and dropped after, and the next one is prepared meanwhile by a thread of its own. Adapters are put on as a part is
//! lent, on a view of it: the part itself never wears any.
//!
//! What is lent from either is the same, bit by bit. On the CPU a streamed weight is not laid out for its products, as a
//! resident one is once and for all: the forward product turns it around instead, which takes the same time as laying it out
//! at every loan would, and the backward product is spared turning it back.

mod streamed;
mod whole;

use std::{ops::Deref, sync::Arc};

use burn::tensor::Device;

use crate::{
    nn::{Adapters, LayerShape, Linears, Parameters},
    weights::Weights,
};
use streamed::Streamed;
pub use whole::Whole;

/// A part of a network that can be lent.
///
/// As [`Parameters`] it names every tensor it has, or none if the network is trained by adapters only. Adapters are not among
/// them.
pub trait Part: Clone + Linears + Parameters + Send + Sync + 'static {
    /// Its name in the checkpoint, empty if its layers stand at the top.
    fn name(&self) -> &str;
}

/// Where parts lie while they are not lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// On the device.
    #[default]
    Resident,
    /// In their file; two of them at most are on the device, the one that is lent and the one that comes next.
    Streamed,
    /// In their file; on the device is only the one that is lent.
    Single,
}

/// The bytes of a list of parts on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of all parts.
    pub total: u64,
    /// Of the largest part.
    pub largest: u64,
}

impl Sizes {
    /// What stays on the device between two uses if the parts lie there.
    pub fn kept_at(self, residence: Residence) -> u64 {
        if residence == Residence::Resident { self.total } else { 0 }
    }

    /// What is on the device at once if the parts lie there.
    pub fn at(self, residence: Residence) -> u64 {
        match residence {
            Residence::Resident => self.total,
            Residence::Streamed => self.total.min(2 * self.largest),
            Residence::Single => self.largest,
        }
    }
}

/// A part for as long as this lives.
#[derive(Debug)]
pub enum Lent<'a, P> {
    /// One that stays.
    Borrowed(&'a P),
    /// One that came for this loan, or a view of one that stays with adapters on.
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
    /// The part to change: its tensors are shared with one that stays until they are changed.
    pub fn into_own(self) -> P {
        match self {
            Self::Borrowed(part) => part.clone(),
            Self::Own(part) => part,
        }
    }
}

/// All parts of a network, and what is known of them without their values.
#[derive(Clone, Debug)]
pub struct Lender<P> {
    source: Source<P>,
    facts: Arc<[Facts]>,
    device: Device,
    /// Whether parts that come from their file are read before they are lent.
    reads_ahead: bool,
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
    /// How a layer is stored, if one is quantized.
    quantized: Option<&'static str>,
    convolutions: Vec<LayerShape>,
    has_parameters: bool,
    /// On the device.
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

#[allow(clippy::len_without_is_empty)] // no network is
impl<P: Part> Lender<P> {
    /// `count` parts, each of which `load` takes from weights. The caller ends with [`Weights::finish`]: what is missing or
    /// does not fit is found now, from headers alone where parts are streamed.
    pub fn new(
        weights: &Weights,
        residence: Residence,
        count: usize,
        load: impl Fn(&Weights, usize) -> P + Send + Sync + 'static,
    ) -> Self {
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
        Self { source, facts: facts.into(), device: weights.device().clone(), reads_ahead }
    }

    /// How many parts there are.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// The bytes of the parts.
    pub fn sizes(&self) -> Sizes {
        let bytes = || self.facts.iter().map(|facts| facts.bytes);
        Sizes { total: bytes().sum(), largest: bytes().max().unwrap_or(0) }
    }

    /// The device on which parts are lent.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All linear layers in their order.
    pub fn layers(&self) -> Vec<LayerShape> {
        self.facts.iter().flat_map(|facts| facts.layers.iter().cloned()).collect()
    }

    /// How the first layer that is quantized is stored; `None` if none is.
    pub fn quantized(&self) -> Option<&'static str> {
        self.facts.iter().find_map(|facts| facts.quantized)
    }

    /// All linear layers and convolutions, segment by segment: what can wear adapters of any kind.
    pub fn wearable(&self) -> Vec<LayerShape> {
        self.facts.iter().flat_map(|facts| facts.layers.iter().chain(&facts.convolutions).cloned()).collect()
    }

    /// The first part with a layer that wears one of these, if any.
    pub fn first_wearing(&self, adapters: &Adapters) -> Option<usize> {
        (0..self.len()).find(|&index| self.wears(index, adapters))
    }

    /// The first part with tensors to train, if any.
    pub fn first_with_parameters(&self) -> Option<usize> {
        self.facts.iter().position(|facts| facts.has_parameters)
    }

    /// Lends a part with adapters on.
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

    /// Lends a part with adapters that the rows of a batch wear in turn; see [`Adapters::put_on_rows`].
    fn lend_by_row(&self, index: usize, rows: &[Adapters]) -> Lent<'_, P> {
        let mut part = self.lend(index, None).into_own();
        Adapters::put_on_rows(rows, &self.facts[index].name, &mut part);
        Lent::Own(part)
    }

    fn wears(&self, index: usize, adapters: &Adapters) -> bool {
        let Facts { layers, convolutions, .. } = &self.facts[index];
        layers.iter().chain(convolutions).any(|layer| adapters.contains(&layer.name))
    }

    /// Lends parts in this order, each while the next one is prepared. The caller lets go of one before it asks for the next.
    pub fn walk<'a>(
        &'a self,
        order: impl IntoIterator<Item = usize> + 'a,
        adapters: Option<&'a Adapters>,
    ) -> impl Iterator<Item = Lent<'a, P>> {
        self.walk_with(order, move |index| self.lend(index, adapters))
    }

    /// The same with adapters that the rows of a batch wear in turn; see [`Adapters::put_on_rows`].
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

    /// All parts, to be changed for good.
    ///
    /// # Panics
    /// They are streamed: what is read anew for each use cannot be changed.
    pub fn parts_mut(&mut self) -> &mut [P] {
        match &mut self.source {
            Source::Resident(parts) => parts,
            Source::Streamed(_) => panic!("weights that are streamed from their file cannot be changed"),
        }
    }

    /// Changes one part for good; a streamed one every time it is read.
    pub fn change(&mut self, index: usize, change: impl Fn(&mut P) + Send + Sync + 'static) {
        match &mut self.source {
            Source::Resident(parts) => change(&mut parts[index]),
            Source::Streamed(streamed) => *streamed = Arc::new(streamed.changed(index, change)),
        }
    }
}
