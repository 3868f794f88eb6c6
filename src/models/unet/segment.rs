//! The network as segments. The first stream is the picture; those behind it are the skip connections, the latest last.

use burn::tensor::Tensor;

use super::{
    DownBlockType, UNetConfig, UNetInputs, UpBlockType,
    attention::SpatialTransformer,
    resnet::Resnet,
    stem::{Head, Stem},
};
use crate::{
    models::{Segment, State},
    nn::{Conv2d, Linear, Linears, Parameter, Parameters, upsample_nearest},
    weights::Weights,
};

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
    /// Halves the picture's sides; what comes out is a skip connection, too.
    Down(Conv2d),
    /// Doubles the picture's sides.
    Up(Conv2d),
    Head(Head),
}

/// A residual block and perhaps attention, which have one number within their level.
#[derive(Clone, Debug)]
struct Layer {
    number: usize,
    way: Way,
    resnet: Resnet,
    attention: Option<SpatialTransformer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// What comes out is a skip connection, too.
    Down,
    /// Skip connections are left alone.
    Level,
    /// The latest skip connection is joined to what goes in.
    Up,
}

/// The segments in order, with their tensors.
pub(super) fn load(weights: &Weights, config: &UNetConfig) -> Vec<UNetSegment> {
    let levels = config.block_out_channels.len();
    let layer = |name: &str, number: usize, way, [inputs, outputs]: [usize; 2], level: Option<usize>| {
        let at = weights.at(name);
        let resnet = Resnet::load(&at.at(format!("resnets.{number}")), config, inputs, outputs);
        let attention =
            level.map(|level| SpatialTransformer::load(&at.at(format!("attentions.{number}")), config, level));
        UNetSegment { name: name.into(), part: Part::Layer(Layer { number, way, resnet, attention }) }
    };
    let resample = |name: &str, layer: &str, channels| Conv2d::load(&weights.at(name).at(layer), channels, channels, 3);
    let mut segments = vec![UNetSegment { name: String::new(), part: Part::Stem(Stem::load(weights, config)) }];
    let mut channels = config.block_out_channels[0];
    let mut skips = vec![channels];
    for level in 0..levels {
        let name = format!("down_blocks.{level}");
        let outputs = config.block_out_channels[level];
        let attends = config.down_block_types[level] == DownBlockType::CrossAttnDownBlock2D;
        for number in 0..config.layers_per_block.at(level) {
            segments.push(layer(&name, number, Way::Down, [channels, outputs], attends.then_some(level)));
            channels = outputs;
            skips.push(channels);
        }
        if level + 1 < levels {
            let conv = Conv2d { stride: 2, ..resample(&name, "downsamplers.0.conv", channels) };
            segments.push(UNetSegment { name, part: Part::Down(conv) });
            skips.push(channels);
        }
    }
    if config.mid_block_type.is_some() {
        segments.push(layer("mid_block", 0, Way::Level, [channels; 2], Some(levels - 1)));
        segments.push(layer("mid_block", 1, Way::Level, [channels; 2], None));
    }
    for (i, level) in (0..levels).rev().enumerate() {
        let name = format!("up_blocks.{i}");
        let outputs = config.block_out_channels[level];
        let attends = config.up_block_types[i] == UpBlockType::CrossAttnUpBlock2D;
        for number in 0..=config.layers_per_block.at(level) {
            let skip = skips.pop().expect("the way down made one for each layer of the way up");
            segments.push(layer(&name, number, Way::Up, [channels + skip, outputs], attends.then_some(level)));
            channels = outputs;
        }
        if level > 0 {
            let conv = resample(&name, "upsamplers.0.conv", channels);
            segments.push(UNetSegment { name, part: Part::Up(conv) });
        }
    }
    segments.push(UNetSegment { name: String::new(), part: Part::Head(Head::load(weights, config)) });
    segments
}

/// `x` for the next segment and as a skip connection. The segment has its own view, so that all that it adds to the gradient
/// is one sum, in one order, whatever is kept for going back.
fn keep(x: Tensor<4>, mut skips: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
    skips.insert(0, x.clone().unsqueeze_dim::<5>(1).squeeze_dim(1));
    skips.push(x);
    skips
}

impl UNetSegment {
    /// See [`UNet::widen`](super::UNet::widen); the stem only.
    pub(super) fn widen(&mut self, inputs: usize) {
        if let Part::Stem(stem) = &mut self.part {
            stem.widen(inputs);
        }
    }
}

impl Segment for UNetSegment {
    type Inputs = UNetInputs;

    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, inputs: &UNetInputs, mut state: State) -> State {
        let mut streams = std::mem::take(&mut state.streams);
        if let Part::Stem(stem) = &self.part {
            let (x, time) = stem.forward(inputs);
            return State { streams: keep(x, streams), shared: vec![time] };
        }
        let mut x = streams.remove(0);
        state.streams = match &self.part {
            Part::Stem(_) => unreachable!("it has returned"),
            Part::Layer(layer) => {
                if layer.way == Way::Up {
                    let skip = streams.pop().expect("the way down made one for each layer of the way up");
                    x = Tensor::cat(vec![x, skip], 1);
                }
                let time = state.shared(0);
                // Handed on from layer to layer: what comes back for it is then added up layer by layer. With one tape for
                // the whole network, skip connections would lead to early layers before late ones, and rounding differ.
                state.shared[0] = state.shared(0);
                let mut x = layer.resnet.forward(x, time);
                if let Some(attention) = &layer.attention {
                    x = attention.forward(x, &inputs.text);
                }
                if layer.way == Way::Down {
                    keep(x, streams)
                } else {
                    streams.insert(0, x);
                    streams
                }
            }
            Part::Down(conv) => keep(conv.forward(x), streams),
            Part::Up(conv) => {
                // Halving an odd side rounds up, so what was doubled again may be one too large.
                let [_, _, height, width] = streams.last().expect("skip connections are left").dims();
                let x = upsample_nearest(x).narrow(2, 0, height).narrow(3, 0, width);
                streams.insert(0, conv.forward(x));
                streams
            }
            Part::Head(head) => vec![head.forward(x)],
        };
        state
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
