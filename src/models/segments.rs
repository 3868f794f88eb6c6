//! A network as a list of segments that are lent, one at a time, to whoever needs them.
//!
//! Inference runs the segments one after the other. Training runs them forward without a tape, keeping only what stands
//! between them, and then backward, one tape at a time. Offloading or swapping adapters is lending a segment, too.

use burn::tensor::Tensor;

use crate::nn::{Linear, Linears, Parameter, Parameters, below};

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
/// whatever is kept for going back.
pub(super) fn view(shared: &Tensor<2>) -> Tensor<2> {
    shared.clone().unsqueeze_dim::<3>(1).squeeze_dim(1)
}

/// One segment of a network: stem, block or head.
///
/// As [`Parameters`] it names every tensor it has, or none if the network is trained by adapters only. Adapters are not among
/// them.
pub trait Segment: Clone + Linears + Parameters {
    /// What the network is called with; constant during the run.
    type Inputs: Inputs;

    /// What the segments hand on.
    type State: State;

    /// The segment's name in the checkpoint, empty if its layers stand at the top.
    fn name(&self) -> &str;

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
}

/// A network made of segments.
pub trait Segmented: Clone {
    /// Their type.
    type Segment: Segment;

    /// Stem, blocks, head.
    fn segments(&self) -> &[Self::Segment];

    /// The same, to attach adapters.
    fn segments_mut(&mut self) -> &mut [Self::Segment];

    /// The prediction for `inputs`: `[B, C, H, W]`, or `[B, 1, L, D]`.
    fn predict(&self, inputs: &<Self::Segment as Segment>::Inputs) -> Tensor<4> {
        let start = <Self::Segment as Segment>::State::default();
        self.segments().iter().fold(start, |state, segment| segment.run(inputs, state)).prediction()
    }
}

/// A segmented network names its layers segment by segment.
impl<T: Segmented> Linears for T {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for segment in self.segments_mut() {
            let name = below(path, segment.name());
            segment.linears(&name, visit);
        }
    }
}

/// A segmented network names its tensors segment by segment.
impl<T: Segmented> Parameters for T {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for segment in self.segments_mut() {
            let name = below(path, segment.name());
            segment.parameters(&name, visit);
        }
    }
}
