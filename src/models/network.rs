//! A network as a list of segments that are lent, one at a time, to whoever needs them.
//!
//! Inference runs the segments one after the other. Training runs them forward without a tape, keeping only what stands
//! between them, and then backward, one tape at a time. Where the segments lie meanwhile, and which adapters they wear, is
//! settled as they are lent: [`crate::lending`]. Adapters come with each call and are not part of the network, so that many
//! sets of them can use one network at the same time.

use burn::tensor::Tensor;

use crate::{
    lending::{Lender, Lent, Part},
    nn::{Adapters, Conv2d, LayerShape, Linear, Linears, Parameter, Parameters, below},
};

/// What stands between two segments of a network, of a type of the network's own: at first nothing, at last the prediction.
pub trait State: Clone + Default {
    /// The same with every tensor changed, always in one order: first what the segments change, then what they share.
    fn map(self, change: &mut impl Change) -> Self;

    /// What the head predicts: `[B, C, H, W]`, or `[B, 1, L, D]`.
    ///
    /// # Panics
    /// The head has not been run.
    fn prediction(self) -> Tensor<4>;
}

/// What is done to each tensor of a [`State`].
pub trait Change {
    /// To one that the segments change, or let pass as it is.
    fn stream<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;

    /// To one that the first segment makes and all others read. They hand it on, as it is or as a view of it.
    fn shared<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;
}

/// What is shared `[B, D]`, as a view for one segment: all that the segment adds to its gradient is then one sum, in one order,
/// whatever is kept for the backward pass.
pub(super) fn view(shared: &Tensor<2>) -> Tensor<2> {
    shared.clone().unsqueeze_dim::<3>(1).squeeze_dim(1)
}

/// One segment of a network: stem, block or head.
pub trait Segment: Part {
    /// What the network is called with; constant during the run.
    type Inputs: Inputs;

    /// What the segments hand on.
    type State: State;

    /// Runs the segment on what the one before it made.
    ///
    /// # Panics
    /// Segments are run in another order than that of their network.
    fn run(&self, inputs: &Self::Inputs, state: Self::State) -> Self::State;
}

/// The inputs of a network.
pub trait Inputs: Clone {
    /// The same on the autodiff device, as constants.
    fn tracked(&self) -> Self;

    /// How many rows the batch has.
    fn rows(&self) -> usize;
}

/// A network: stem, blocks, head.
#[allow(clippy::len_without_is_empty)] // none is
pub trait Network: Clone {
    /// What it is called with.
    type Inputs: Inputs;

    /// What its segments hand on.
    type State: State;

    /// The type of all of them.
    type Segment: Segment<Inputs = Self::Inputs, State = Self::State>;

    /// Where its segments are.
    fn lender(&self) -> &Lender<Self::Segment>;

    /// The same, to change them for good.
    fn lender_mut(&mut self) -> &mut Lender<Self::Segment>;

    /// How many segments there are.
    fn len(&self) -> usize {
        self.lender().len()
    }

    /// Lends a segment with adapters on.
    fn lend(&self, index: usize, adapters: Option<&Adapters>) -> Lent<'_, Self::Segment> {
        self.lender().lend(index, adapters)
    }

    /// All linear layers in their order.
    fn layers(&self) -> Vec<LayerShape> {
        self.lender().layers()
    }

    /// All linear layers and convolutions: what can wear adapters of any kind.
    fn wearable(&self) -> Vec<LayerShape> {
        self.lender().wearable()
    }

    /// The prediction for `inputs`: `[B, C, H, W]`, or `[B, 1, L, D]`. The rows wear no adapters, all the same, or these in
    /// turn.
    ///
    /// All rows go through each layer together, and then each through its own adapters. On the CPU in f32 each has the bits that
    /// it has alone, whatever rows are with it and whatever they wear.
    fn predict(&self, inputs: &Self::Inputs, adapters: &[Adapters]) -> Tensor<4> {
        let lender = self.lender();
        let run = |state, segment: Lent<'_, Self::Segment>| segment.run(inputs, state);
        let state = match inputs.rows() {
            1 => lender.walk(0..self.len(), adapters.first()).fold(Self::State::default(), run),
            _ => lender.walk_by_row(0..self.len(), adapters).fold(Self::State::default(), run),
        };
        state.prediction()
    }
}

/// A network names its layers segment by segment.
///
/// # Panics
/// It is streamed: [`Network::layers`] tells them all the same.
impl<T: Network> Linears for T {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for segment in self.lender_mut().parts_mut() {
            let name = below(path, segment.name());
            segment.linears(&name, visit);
        }
    }

    fn convolutions(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Conv2d)) {
        for segment in self.lender_mut().parts_mut() {
            let name = below(path, segment.name());
            segment.convolutions(&name, visit);
        }
    }
}

/// A network names its tensors segment by segment.
///
/// # Panics
/// It is streamed.
impl<T: Network> Parameters for T {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for segment in self.lender_mut().parts_mut() {
            let name = below(path, segment.name());
            segment.parameters(&name, visit);
        }
    }
}
