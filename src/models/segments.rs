//! A network as a list of segments that are lent, one at a time, to whoever needs them.
//!
//! Inference runs the segments one after the other. Training runs them forward without a tape, keeping only what stands
//! between them, and then backward, one tape at a time. Offloading or swapping adapters is lending a segment, too.

use burn::tensor::Tensor;

use crate::nn::{Linear, Linears, Parameter, Parameters, below};

/// The activations between two segments.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What the segments change: pictures `[B, C, H, W]`, or sequences as `[B, 1, L, D]`. A segment may add streams and take
    /// some away; those that skip it come out as they went in.
    pub streams: Vec<Tensor<4>>,
    /// What the first segment makes and all others read, `[B, D]`. They hand it on, as it is or as a view of it.
    pub shared: Vec<Tensor<2>>,
}

impl State {
    /// What is shared under this number, as a view for one segment: all that the segment adds to its gradient is then one sum,
    /// in one order, whatever is kept for going back.
    pub fn shared(&self, number: usize) -> Tensor<2> {
        self.shared[number].clone().unsqueeze_dim::<3>(1).squeeze_dim(1)
    }
}

/// One segment of a network: stem, block or head.
///
/// As [`Parameters`] it names every tensor it has, or none if the network is trained by adapters only. Adapters are not among
/// them.
pub trait Segment: Clone + Linears + Parameters {
    /// What the network is called with; constant during the run.
    type Inputs: Inputs;

    /// The segment's name in the checkpoint, empty if its layers stand at the top.
    fn name(&self) -> &str;

    /// Runs the segment. The stem ignores `state`; the head leaves the prediction as the only stream.
    fn run(&self, inputs: &Self::Inputs, state: State) -> State;
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
        let state = self.segments().iter().fold(State::default(), |state, segment| segment.run(inputs, state));
        state.streams.into_iter().next().expect("the head leaves one stream")
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
