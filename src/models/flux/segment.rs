//! The network as segments: `stem → double blocks → single blocks → head`.

use burn::tensor::Tensor;

use super::{
    FluxConfig, FluxInputs,
    blocks::{DoubleBlock, SingleBlock},
    stem::{Head, Stem},
};
use crate::{
    lending,
    models::{Change, Segment, State, view},
    nn::{Linear, Linears, Parameter, Parameters},
    weights::Weights,
};

/// The state between two segments.
#[derive(Clone, Debug, Default)]
pub enum FluxState {
    /// Empty, before the stem.
    #[default]
    Start,
    /// Image and text side by side.
    Two {
        /// `[B, L, D]`.
        img: Tensor<3>,
        /// `[B, T, D]`.
        txt: Tensor<3>,
        /// The SiLU of the embedded noise level, guidance and pooled text, `[B, D]`.
        vec: Tensor<2>,
    },
    /// Text and image as one sequence.
    One {
        /// `[B, T + L, D]`.
        x: Tensor<3>,
        /// As in `Two`.
        vec: Tensor<2>,
    },
    /// The prediction for each image token, `[B, L, 4·C]`.
    Velocity(Tensor<3>),
}

use FluxState::{One, Start, Two, Velocity};

impl State for FluxState {
    fn map(self, change: &mut impl Change) -> Self {
        match self {
            Start => Start,
            Two { img, txt, vec } => Two { img: change.stream(img), txt: change.stream(txt), vec: change.shared(vec) },
            One { x, vec } => One { x: change.stream(x), vec: change.shared(vec) },
            Velocity(velocity) => Velocity(change.stream(velocity)),
        }
    }

    fn prediction(self) -> Tensor<4> {
        match self {
            Velocity(velocity) => velocity.unsqueeze_dim(1),
            _ => panic!("the head comes last"),
        }
    }
}

/// One segment with its name.
#[derive(Clone, Debug)]
pub struct FluxSegment {
    name: String,
    part: Part,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one small list, never moved
enum Part {
    Stem(Stem),
    Double(DoubleBlock),
    Single(SingleBlock),
    Head(Head),
}

impl FluxSegment {
    /// The number of segments.
    pub(super) fn count(config: &FluxConfig) -> usize {
        config.num_layers + config.num_single_layers + 2
    }

    /// Takes the tensors of one.
    pub(super) fn load(weights: &Weights, config: &FluxConfig, index: usize) -> Self {
        let (double, single) = (config.num_layers, config.num_single_layers);
        if index == 0 {
            return Self { name: String::new(), part: Part::Stem(Stem::load(weights, config)) };
        }
        let block = index - 1;
        if block < double {
            let name = format!("transformer_blocks.{block}");
            let part = Part::Double(DoubleBlock::load(&weights.at(&name), config));
            return Self { name, part };
        }
        if block < double + single {
            let name = format!("single_transformer_blocks.{}", block - double);
            let part = Part::Single(SingleBlock::load(&weights.at(&name), config));
            return Self { name, part };
        }
        Self { name: String::new(), part: Part::Head(Head::load(weights, config)) }
    }
}

impl lending::Part for FluxSegment {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Segment for FluxSegment {
    type Inputs = FluxInputs;
    type State = FluxState;

    fn run(&self, inputs: &FluxInputs, state: FluxState) -> FluxState {
        match (&self.part, state) {
            (Part::Stem(stem), Start) => {
                let (img, txt, vec) = stem.forward(inputs);
                Two { img, txt, vec }
            }
            (Part::Double(block), Two { img, txt, vec }) => {
                let (img, txt) = block.forward(img, txt, &view(&vec), &inputs.rope, &inputs.limits);
                Two { img, txt, vec }
            }
            (Part::Single(block), One { x, vec }) => {
                One { x: block.forward(x, &view(&vec), &inputs.rope, &inputs.limits), vec }
            }
            (Part::Head(head), One { x, vec }) => {
                let (text_tokens, image_tokens) = (inputs.txt.dims()[1], inputs.img.dims()[1]);
                Velocity(head.forward(x.narrow(1, text_tokens, image_tokens), view(&vec)))
            }
            // From two streams to one, text first.
            (Part::Single(_), Two { img, txt, vec }) => {
                self.run(inputs, One { x: Tensor::cat(vec![txt, img], 1), vec })
            }
            // Without single blocks.
            (Part::Head(head), Two { img, vec, .. }) => Velocity(head.forward(img, view(&vec))),
            _ => panic!("segments run in their order: stem, double blocks, single blocks, head"),
        }
    }
}

impl Linears for FluxSegment {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        match &mut self.part {
            Part::Stem(stem) => stem.linears(path, visit),
            Part::Double(block) => block.linears(path, visit),
            Part::Single(block) => block.linears(path, visit),
            Part::Head(head) => head.linears(path, visit),
        }
    }
}

impl Parameters for FluxSegment {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        match &mut self.part {
            Part::Double(block) => block.parameters(path, visit),
            Part::Single(block) => block.parameters(path, visit),
            // Linear layers only.
            Part::Stem(stem) => stem.linears(path, &mut |name, layer| layer.parameters(name, visit)),
            Part::Head(head) => head.linears(path, &mut |name, layer| layer.parameters(name, visit)),
        }
    }
}
