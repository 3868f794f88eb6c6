//! A network as a list of segments that are lent, one at a time, to whoever needs them.
//!
//! Inference runs the segments one after the other. Training runs them forward without a tape, keeping only what stands
//! between them, and then backward, one tape at a time. Offloading or swapping adapters is lending a segment, too.

use burn::tensor::Tensor;

use crate::nn::{Linear, Linears};

/// The activations between two segments. Both lists hold `[B, L, D]`.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What each segment changes.
    pub streams: Vec<Tensor<3>>,
    /// What the first segment makes and all others read.
    pub shared: Vec<Tensor<3>>,
}

/// One segment of a network: stem, block or head.
pub trait Segment: Clone + Linears {
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

    /// The prediction `[B, L, D]` for `inputs`.
    fn predict(&self, inputs: &<Self::Segment as Segment>::Inputs) -> Tensor<3> {
        let state = self.segments().iter().fold(State::default(), |state, segment| segment.run(inputs, state));
        state.streams.into_iter().next().expect("the head leaves one stream")
    }
}

/// A segmented network names its layers segment by segment.
impl<T: Segmented> Linears for T {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for segment in self.segments_mut() {
            let name = match (path, segment.name()) {
                ("", name) => name.to_string(),
                (path, "") => path.to_string(),
                (path, name) => format!("{path}.{name}"),
            };
            segment.linears(&name, visit);
        }
    }
}
