//! The two ends of the network.

use burn::tensor::{FloatDType, Tensor};

use super::{UNetConfig, UNetInputs};
use crate::{
    kernels::silu,
    models::embedding::{frequencies, waves},
    nn::{Conv2d, GroupNorm, Linear, Linears, Parameter, Parameters, below},
    weights::Weights,
};

/// The first convolution, and the embedding of the timestep.
#[derive(Clone, Debug)]
pub(super) struct Stem {
    conv_in: Conv2d,
    linear_1: Linear,
    linear_2: Linear,
    frequencies: Tensor<1>,
    cosine_first: bool,
    center: bool,
}

impl Stem {
    pub(super) fn load(weights: &Weights, config: &UNetConfig) -> Self {
        let (channels, width) = (config.block_out_channels[0], config.time_width());
        let embedding = weights.at("time_embedding");
        Self {
            conv_in: Conv2d::load(&weights.at("conv_in"), config.in_channels, channels, config.conv_in_kernel),
            linear_1: Linear::load(&embedding.at("linear_1"), channels, width),
            linear_2: Linear::load(&embedding.at("linear_2"), width, width),
            frequencies: frequencies(channels / 2, config.freq_shift, weights.device()),
            cosine_first: config.flip_sin_to_cos,
            center: config.center_input_sample,
        }
    }

    /// The image `[B, C, h, w]`, and the SiLU of the embedded timestep `[B, D]`: every residual block takes the SiLU of it,
    /// so it is taken once.
    pub(super) fn forward(&self, inputs: &UNetInputs) -> (Tensor<4>, Tensor<2>) {
        let sample = if self.center { inputs.sample.clone() * 2.0 - 1.0 } else { inputs.sample.clone() };
        let dtype: FloatDType = sample.dtype().into();
        let time = waves(inputs.timestep.clone(), self.frequencies.clone(), self.cosine_first).cast(dtype);
        let time = self.linear_2.forward(silu(self.linear_1.forward(time)));
        (self.conv_in.forward(sample), silu(time))
    }

    /// See [`UNet::widen`](super::UNet::widen).
    pub(super) fn widen(&mut self, inputs: usize) {
        self.conv_in.widen(inputs);
    }
}

impl Linears for Stem {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(&below(path, "time_embedding.linear_1"), &mut self.linear_1);
        visit(&below(path, "time_embedding.linear_2"), &mut self.linear_2);
    }

    fn convolutions(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Conv2d)) {
        visit(&below(path, "conv_in"), &mut self.conv_in);
    }
}

impl Parameters for Stem {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.conv_in.parameters(&below(path, "conv_in"), visit);
        self.linears(path, &mut |name, layer| layer.parameters(name, visit));
    }
}

/// The last norm and convolution.
#[derive(Clone, Debug)]
pub(super) struct Head {
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Head {
    pub(super) fn load(weights: &Weights, config: &UNetConfig) -> Self {
        let (channels, groups) = (config.block_out_channels[0], config.norm_num_groups);
        Self {
            conv_norm_out: GroupNorm::load(&weights.at("conv_norm_out"), channels, groups, config.norm_eps),
            conv_out: Conv2d::load(&weights.at("conv_out"), channels, config.out_channels, config.conv_out_kernel),
        }
    }

    pub(super) fn convolutions(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Conv2d)) {
        visit(&below(path, "conv_out"), &mut self.conv_out);
    }

    /// `[B, C, h, w]` → `[B, out_channels, h, w]`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward(self.conv_norm_out.forward_silu(x))
    }
}

impl Parameters for Head {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.conv_norm_out.parameters(&below(path, "conv_norm_out"), visit);
        self.conv_out.parameters(&below(path, "conv_out"), visit);
    }
}
