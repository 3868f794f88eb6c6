//! The network as segments: `stem → way down → middle → way up → head`.

use burn::tensor::Tensor;

use super::{
    DownBlockType, UNetConfig, UNetInputs, UpBlockType,
    attention::SpatialTransformer,
    resnet::Resnet,
    stem::{Head, Stem},
};
use crate::{
    lending,
    models::{Change, Segment, State, view},
    nn::{Conv2d, Linear, Linears, Parameter, Parameters, upsample_nearest},
    weights::Weights,
};

/// The state between two segments.
#[derive(Clone, Debug, Default)]
pub enum UNetState {
    /// Empty, before the stem.
    #[default]
    Start,
    /// Features, with skip connections.
    Way {
        /// The image, `[B, C, h, w]`.
        x: Tensor<4>,
        /// The skip connections, the latest last, each `[B, C, h, w]`.
        skips: Vec<Tensor<4>>,
        /// The SiLU of the embedded timestep, `[B, D]`.
        time: Tensor<2>,
    },
    /// The prediction, `[B, out_channels, h, w]`.
    Prediction(Tensor<4>),
}

use UNetState::{Prediction, Start, Way};

impl UNetState {
    /// `x` for the next segment and as a skip connection. The segment has its own view, so that all that it adds to the gradient
    /// is one sum, in one order, whatever is kept for the backward pass.
    fn keep(x: Tensor<4>, mut skips: Vec<Tensor<4>>, time: Tensor<2>) -> Self {
        let own = x.clone().unsqueeze_dim::<5>(1).squeeze_dim(1);
        skips.push(x);
        Way { x: own, skips, time }
    }
}

impl State for UNetState {
    fn map(self, change: &mut impl Change) -> Self {
        match self {
            Start => Start,
            Way { x, skips, time } => Way {
                x: change.stream(x),
                skips: skips.into_iter().map(|skip| change.stream(skip)).collect(),
                time: change.shared(time),
            },
            Prediction(y) => Prediction(change.stream(y)),
        }
    }

    fn prediction(self) -> Tensor<4> {
        match self {
            Prediction(y) => y,
            _ => panic!("the head comes last"),
        }
    }
}

/// One segment with its name.
#[derive(Clone, Debug)]
pub struct UNetSegment {
    name: String,
    part: Part,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one small list, never moved
enum Part {
    Stem(Stem),
    Layer(Layer),
    /// Halves the sides; the output is also a skip connection.
    Down(Conv2d),
    /// Doubles the sides.
    Up(Conv2d),
    Head(Head),
}

/// A residual block with optional attention, which share a number within their level.
#[derive(Clone, Debug)]
struct Layer {
    number: usize,
    direction: Direction,
    resnet: Resnet,
    attention: Option<SpatialTransformer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    /// The output is also a skip connection.
    Down,
    /// Skip connections are left alone.
    Level,
    /// The latest skip connection is joined to the input.
    Up,
}

/// The description of a segment, without its tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its group in the checkpoint, and the number of that group.
    group: (&'static str, usize),
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Stem,
    Layer { number: usize, direction: Direction, channels: [usize; 2], attention: Option<usize> },
    Down { channels: usize },
    Up { channels: usize },
    Head,
}

impl Place {
    /// All segments in order.
    pub(super) fn all(config: &UNetConfig) -> Vec<Self> {
        const TOP: (&str, usize) = ("", 0);
        let levels = config.block_out_channels.len();
        let mut channels = config.block_out_channels[0];
        let mut skips = vec![channels];
        let mut all = vec![Self { group: TOP, kind: Kind::Stem }];
        for level in 0..levels {
            let group = ("down_blocks", level);
            let outputs = config.block_out_channels[level];
            let attends = config.down_block_types[level] == DownBlockType::CrossAttnDownBlock2D;
            for number in 0..config.layers_per_block.at(level) {
                let (channels, attention) =
                    ([std::mem::replace(&mut channels, outputs), outputs], attends.then_some(level));
                all.push(Self { group, kind: Kind::Layer { number, direction: Direction::Down, channels, attention } });
                skips.push(outputs);
            }
            if level + 1 < levels {
                all.push(Self { group, kind: Kind::Down { channels } });
                skips.push(channels);
            }
        }
        if config.mid_block_type.is_some() {
            for (number, attention) in [(0, Some(levels - 1)), (1, None)] {
                let (direction, channels) = (Direction::Level, [channels; 2]);
                all.push(Self {
                    group: ("mid_block", 0),
                    kind: Kind::Layer { number, direction, channels, attention },
                });
            }
        }
        for (i, level) in (0..levels).rev().enumerate() {
            let group = ("up_blocks", i);
            let outputs = config.block_out_channels[level];
            let attends = config.up_block_types[i] == UpBlockType::CrossAttnUpBlock2D;
            for number in 0..=config.layers_per_block.at(level) {
                let skip = skips.pop().expect("the way down made one for each layer of the way up");
                let inputs = std::mem::replace(&mut channels, outputs) + skip;
                let (channels, attention) = ([inputs, outputs], attends.then_some(level));
                all.push(Self { group, kind: Kind::Layer { number, direction: Direction::Up, channels, attention } });
            }
            if level > 0 {
                all.push(Self { group, kind: Kind::Up { channels } });
            }
        }
        all.push(Self { group: TOP, kind: Kind::Head });
        all
    }

    fn name(&self) -> String {
        match self.group {
            (group @ ("" | "mid_block"), _) => group.into(),
            (group, number) => format!("{group}.{number}"),
        }
    }

    /// The segment with its tensors.
    pub(super) fn load(&self, weights: &Weights, config: &UNetConfig) -> UNetSegment {
        let name = self.name();
        let at = weights.at(&name);
        let resample = |layer: &str, channels| Conv2d::load(&at.at(layer), channels, channels, 3);
        let part = match self.kind {
            Kind::Stem => Part::Stem(Stem::load(weights, config)),
            Kind::Layer { number, direction, channels: [inputs, outputs], attention } => {
                let resnet = Resnet::load(&at.at(format!("resnets.{number}")), config, inputs, outputs);
                let load = |level| SpatialTransformer::load(&at.at(format!("attentions.{number}")), config, level);
                Part::Layer(Layer { number, direction, resnet, attention: attention.map(load) })
            }
            Kind::Down { channels } => Part::Down(resample("downsamplers.0.conv", channels).with(2, 1)),
            Kind::Up { channels } => Part::Up(resample("upsamplers.0.conv", channels)),
            Kind::Head => Part::Head(Head::load(weights, config)),
        };
        UNetSegment { name, part }
    }
}

impl UNetSegment {
    /// See [`UNet::widen`](super::UNet::widen); the stem only.
    pub(super) fn widen(&mut self, inputs: usize) {
        if let Part::Stem(stem) = &mut self.part {
            stem.widen(inputs);
        }
    }
}

impl Layer {
    fn forward(&self, mut x: Tensor<4>, mut skips: Vec<Tensor<4>>, time: Tensor<2>, inputs: &UNetInputs) -> UNetState {
        if self.direction == Direction::Up {
            let skip = skips.pop().expect("the way down made one for each layer of the way up");
            x = Tensor::cat(vec![x, skip], 1);
        }
        x = self.resnet.forward(x, view(&time));
        if let Some(attention) = &self.attention {
            x = attention.forward(x, &inputs.text, &inputs.limits);
        }
        // The time embedding is passed on from layer to layer, so that its gradient is summed layer by layer. With one tape for the
        // whole network, skip connections would reach early layers before late ones, and rounding would differ.
        let time = view(&time);
        if self.direction == Direction::Down { UNetState::keep(x, skips, time) } else { Way { x, skips, time } }
    }
}

impl lending::Part for UNetSegment {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Segment for UNetSegment {
    type Inputs = UNetInputs;
    type State = UNetState;

    fn run(&self, inputs: &UNetInputs, state: UNetState) -> UNetState {
        match (&self.part, state) {
            (Part::Stem(stem), Start) => {
                let (x, time) = stem.forward(inputs);
                UNetState::keep(x, Vec::new(), time)
            }
            (Part::Layer(layer), Way { x, skips, time }) => layer.forward(x, skips, time, inputs),
            (Part::Down(conv), Way { x, skips, time }) => UNetState::keep(conv.forward(x), skips, time),
            (Part::Up(conv), Way { x, skips, time }) => {
                // Halving an odd side rounds up, so after doubling it may be too large by one.
                let [_, _, height, width] = skips.last().expect("skip connections are left").dims();
                let x = upsample_nearest(x).narrow(2, 0, height).narrow(3, 0, width);
                Way { x: conv.forward(x), skips, time }
            }
            (Part::Head(head), Way { x, .. }) => Prediction(head.forward(x)),
            _ => panic!("segments run in their order: stem, way down, middle, way up, head"),
        }
    }
}

impl Linears for UNetSegment {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        match &mut self.part {
            Part::Stem(stem) => stem.linears(path, visit),
            Part::Layer(Layer { number, resnet, attention, .. }) => {
                resnet.linears(&format!("{path}.resnets.{number}"), visit);
                if let Some(attention) = attention {
                    attention.linears(&format!("{path}.attentions.{number}"), visit);
                }
            }
            Part::Down(_) | Part::Up(_) | Part::Head(_) => {}
        }
    }

    fn convolutions(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Conv2d)) {
        match &mut self.part {
            Part::Stem(stem) => stem.convolutions(path, visit),
            Part::Layer(Layer { number, resnet, .. }) => {
                resnet.convolutions(&format!("{path}.resnets.{number}"), visit);
            }
            Part::Down(conv) => visit(&format!("{path}.downsamplers.0.conv"), conv),
            Part::Up(conv) => visit(&format!("{path}.upsamplers.0.conv"), conv),
            Part::Head(head) => head.convolutions(path, visit),
        }
    }
}

impl Parameters for UNetSegment {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        match &mut self.part {
            Part::Stem(stem) => stem.parameters(path, visit),
            Part::Layer(Layer { number, resnet, attention, .. }) => {
                resnet.parameters(&format!("{path}.resnets.{number}"), visit);
                if let Some(attention) = attention {
                    attention.parameters(&format!("{path}.attentions.{number}"), visit);
                }
            }
            Part::Down(conv) => conv.parameters(&format!("{path}.downsamplers.0.conv"), visit),
            Part::Up(conv) => conv.parameters(&format!("{path}.upsamplers.0.conv"), visit),
            Part::Head(head) => head.parameters(path, visit),
        }
    }
}
