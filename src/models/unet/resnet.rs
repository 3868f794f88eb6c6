//! The residual block.

use burn::tensor::Tensor;

use super::UNetConfig;
use crate::{
    nn::{Conv2d, GroupNorm, Linear, Linears, Parameter, Parameters},
    weights::Weights,
};

/// Two convolutions with norms before them, the embedded timestep added in between; added to the input.
#[derive(Clone, Debug)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(super) fn load(weights: &Weights, config: &UNetConfig, inputs: usize, outputs: usize) -> Self {
        let norm =
            |name, channels| GroupNorm::load(&weights.at(name), channels, config.norm_num_groups, config.norm_eps);
        Self {
            norm1: norm("norm1", inputs),
            conv1: Conv2d::load(&weights.at("conv1"), inputs, outputs, 3),
            time_emb_proj: Linear::load(&weights.at("time_emb_proj"), config.time_width(), outputs),
            norm2: norm("norm2", outputs),
            conv2: Conv2d::load(&weights.at("conv2"), outputs, outputs, 3),
            conv_shortcut: (inputs != outputs).then(|| Conv2d::load(&weights.at("conv_shortcut"), inputs, outputs, 1)),
        }
    }

    /// `x` `[B, in, h, w]`, `time` (the SiLU of the embedded timestep) `[B, D]` → `[B, out, h, w]`.
    pub(super) fn forward(&self, x: Tensor<4>, time: Tensor<2>) -> Tensor<4> {
        let h = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let time: Tensor<3> = self.time_emb_proj.forward(time).unsqueeze_dim(2);
        let h = self.conv2.forward(self.norm2.forward_silu(h + time.unsqueeze_dim(3)));
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + h,
            None => x + h,
        }
    }
}

impl Linears for Resnet {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(&format!("{path}.time_emb_proj"), &mut self.time_emb_proj);
    }

    fn convolutions(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Conv2d)) {
        visit(&format!("{path}.conv1"), &mut self.conv1);
        visit(&format!("{path}.conv2"), &mut self.conv2);
        if let Some(shortcut) = &mut self.conv_shortcut {
            visit(&format!("{path}.conv_shortcut"), shortcut);
        }
    }
}

impl Parameters for Resnet {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.norm1.parameters(&format!("{path}.norm1"), visit);
        self.conv1.parameters(&format!("{path}.conv1"), visit);
        self.time_emb_proj.parameters(&format!("{path}.time_emb_proj"), visit);
        self.norm2.parameters(&format!("{path}.norm2"), visit);
        self.conv2.parameters(&format!("{path}.conv2"), visit);
        if let Some(shortcut) = &mut self.conv_shortcut {
            shortcut.parameters(&format!("{path}.conv_shortcut"), visit);
        }
    }
}
