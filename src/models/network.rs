//! A network as a list of segments that are lent one at a time.
//!
//! Inference runs the segments one after the other. Training runs them forward without a tape, keeping only the states between them,
//! and then backward, one tape at a time. [`crate::lending`] decides where unused segments are and which adapters are attached.
//! Adapters are passed with each call and are not part of the network, so that many sets of them can share one network.

use burn::tensor::Tensor;

use crate::{
    lending::{Lender, Lent, Part},
    nn::{Adapters, Conv2d, LayerShape, Linear, Linears, Parameter, Parameters, below},
};

/// The state between two segments of a network: at first empty, at last the prediction. Each network has its own type.
pub trait State: Clone + Default {
    /// Maps every tensor, in a fixed order: first those that the segments change, then the shared ones.
    fn map(self, change: &mut impl Change) -> Self;

    /// The prediction of the head: `[B, C, H, W]`, or `[B, 1, L, D]`.
    ///
    /// # Panics
    /// The head has not run.
    fn prediction(self) -> Tensor<4>;
}

/// A map of the tensors of a [`State`].
pub trait Change {
    /// Maps a tensor that the segments change or pass on.
    fn stream<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;

    /// Maps a tensor that the first segment creates and all others read and pass on, possibly as a view.
    fn shared<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;
}

/// A fresh view of a shared tensor `[B, D]` for one segment, which accumulates its gradient there: the order of the sum, and every bit,
/// is the same with and without recomputation.
pub(super) fn view(shared: &Tensor<2>) -> Tensor<2> {
    shared.clone().unsqueeze_dim::<3>(1).squeeze_dim(1)
}

/// One segment of a network: stem, block or head.
pub trait Segment: Part {
    /// The inputs of the network, constant during the run.
    type Inputs: Inputs;

    /// The state between segments.
    type State: State;

    /// Runs the segment on the state after the previous one.
    ///
    /// # Panics
    /// Segments run out of order.
    fn run(&self, inputs: &Self::Inputs, state: Self::State) -> Self::State;
}

/// The inputs of a network.
pub trait Inputs: Clone {
    /// The same on the autodiff device, as constants.
    fn tracked(&self) -> Self;

    /// The number of rows in the batch.
    fn rows(&self) -> usize;
}

/// A network: stem, blocks, head.
#[allow(clippy::len_without_is_empty)] // none is
pub trait Network: Clone {
    /// The inputs.
    type Inputs: Inputs;

    /// The state between its segments.
    type State: State;

    /// The type of the segments.
    type Segment: Segment<Inputs = Self::Inputs, State = Self::State>;

    /// The lender of its segments.
    fn lender(&self) -> &Lender<Self::Segment>;

    /// The same, mutable.
    fn lender_mut(&mut self) -> &mut Lender<Self::Segment>;

    /// The number of segments.
    fn len(&self) -> usize {
        self.lender().len()
    }

    /// Lends a segment with adapters attached.
    fn lend(&self, index: usize, adapters: Option<&Adapters>) -> Lent<'_, Self::Segment> {
        self.lender().lend(index, adapters)
    }

    /// All linear layers in their order.
    fn layers(&self) -> Vec<LayerShape> {
        self.lender().layers()
    }

    /// All linear layers and convolutions, which can have adapters of any kind.
    fn wearable(&self) -> Vec<LayerShape> {
        self.lender().wearable()
    }

    /// The prediction for `inputs`: `[B, C, H, W]`, or `[B, 1, L, D]`. `adapters` is empty, one set for all rows, or sets that the rows
    /// take in turn.
    ///
    /// All rows go through each layer together, and then each through its own adapters. On the CPU in f32 each row has the same bits as
    /// alone, whatever the other rows and their adapters.
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

/// The layers are those of the segments, in order.
///
/// # Panics
/// The network is streamed; use [`Network::layers`].
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

/// The tensors are those of the segments, in order.
///
/// # Panics
/// The network is streamed.
impl<T: Network> Parameters for T {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for segment in self.lender_mut().parts_mut() {
            let name = below(path, segment.name());
            segment.parameters(&name, visit);
        }
    }
}
