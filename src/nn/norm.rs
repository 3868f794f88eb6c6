//! Normalization with learned weights. Statistics are computed in f32 whatever the input's dtype; the output has the input's
//! dtype.

use burn::tensor::{FloatDType, Tensor};

use crate::{
    kernels::{self, GroupStatistics},
    nn::{Parameter, Parameters, below},
    weights::Weights,
};

/// `(x − mean) / √(variance + ε)·weight + bias` over the last axis (Ba et al. 2016).
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// `[D]`.
    weight: Tensor<1>,
    /// `[D]`.
    bias: Tensor<1>,
    /// Added to the variance.
    epsilon: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` `[width]`.
    pub fn load(weights: &Weights, width: usize, epsilon: f64) -> Self {
        Self { weight: weights.tensor("weight", [width]), bias: weights.tensor("bias", [width]), epsilon }
    }

    /// `[…, D]` → `[…, D]`.
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        kernels::layer_norm(x, self.weight.clone(), self.bias.clone(), self.epsilon)
    }
}

/// `weight` and `bias`.
impl Parameters for LayerNorm {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(&below(path, "weight"), Parameter::Vector(&mut self.weight));
        visit(&below(path, "bias"), Parameter::Vector(&mut self.bias));
    }
}

/// `x / √(mean(x²) + ε)·weight` over the last axis: no mean is subtracted, no bias added (Zhang & Sennrich 2019).
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[D]`.
    weight: Tensor<1>,
    /// Added to the mean square.
    epsilon: f64,
}

impl RmsNorm {
    /// Takes `weight` `[width]`.
    pub fn load(weights: &Weights, width: usize, epsilon: f64) -> Self {
        Self { weight: weights.tensor("weight", [width]), epsilon }
    }

    /// `[…, D]` → `[…, D]`. Rounded to the input's dtype before the weight is applied, as in T5.
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        let dtype: FloatDType = x.dtype().into();
        let weight = kernels::on_tape_of(self.weight.clone(), &x).cast(dtype);
        let x = x.cast(FloatDType::F32);
        let deviation = (x.clone().square().mean_dim(N - 1) + self.epsilon).sqrt();
        (x / deviation).cast(dtype) * weight.unsqueeze()
    }
}

/// `weight`.
impl Parameters for RmsNorm {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(&below(path, "weight"), Parameter::Vector(&mut self.weight));
    }
}

/// Normalization over groups of adjacent channels and all pixels (Wu & He 2018).
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// `[C]`.
    weight: Tensor<1>,
    /// `[C]`.
    bias: Tensor<1>,
    /// The number of groups that the channels are divided into.
    groups: usize,
    /// Added to the variance.
    epsilon: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias` `[channels]`; `groups` must divide `channels`.
    pub fn load(weights: &Weights, channels: usize, groups: usize, epsilon: f64) -> Self {
        Self { weight: weights.tensor("weight", [channels]), bias: weights.tensor("bias", [channels]), groups, epsilon }
    }

    /// `[B, C, H, W]` → `[B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        kernels::group_norm(x, self.weight.clone(), self.bias.clone(), self.groups, self.epsilon)
    }

    /// Empty statistics for images of `shape` `[B, C, H, W]`, to be accumulated from their rows.
    pub fn statistics(&self, shape: [usize; 4]) -> GroupStatistics {
        GroupStatistics::new(shape, self.groups, self.epsilon)
    }

    /// [`forward_silu`](Self::forward_silu) for a band of rows of images with these statistics.
    pub fn forward_silu_rows(&self, x: Tensor<4>, statistics: &GroupStatistics) -> Tensor<4> {
        kernels::group_norm_rows(x, self.weight.clone(), self.bias.clone(), statistics, true)
    }

    /// `silu(norm(x))`, as convolutional blocks use it: `[B, C, H, W]` → `[B, C, H, W]`.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        kernels::group_norm_silu(x, self.weight.clone(), self.bias.clone(), self.groups, self.epsilon)
    }
}

/// `weight` and `bias`.
impl Parameters for GroupNorm {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(&below(path, "weight"), Parameter::Vector(&mut self.weight));
        visit(&below(path, "bias"), Parameter::Vector(&mut self.bias));
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData, Tolerance};

    use super::*;

    fn tensor<const N: usize>(values: &[f32], shape: [usize; N]) -> Tensor<N> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    #[test]
    fn group_norm_takes_its_statistics_per_sample_and_group() {
        let norm = GroupNorm {
            weight: tensor(&[1.0, 2.0, 1.0, 1.0], [4]),
            bias: tensor(&[0.0, 1.0, 0.0, 0.0], [4]),
            groups: 2,
            epsilon: 0.0,
        };
        // Group one: −1, 1, −1, 1; group two: 0, 4, 0, 4 (mean 2, deviation 2). The second sample is ten times the first.
        let one = [-1.0, 1.0, -1.0, 1.0, 0.0, 4.0, 0.0, 4.0];
        let both: Vec<f32> = one.iter().copied().chain(one.map(|v| v * 10.0)).collect();
        let expected = [-1.0, 1.0, -1.0, 3.0, -1.0, 1.0, -1.0, 1.0];
        let expected: Vec<f32> = [expected, expected].concat();
        let got = norm.forward(tensor(&both, [2, 4, 1, 2]));
        got.into_data().assert_approx_eq::<f32>(&TensorData::new(expected, [2, 4, 1, 2]), Tolerance::absolute(1e-5));
    }

    #[test]
    fn group_norm_in_bf16_keeps_its_statistics_in_f32() {
        let ones = || tensor(&[1.0; 2], [2]);
        let norm = GroupNorm { weight: ones(), bias: ones() - 1.0, groups: 1, epsilon: 0.0 };
        // 256 and 258 are adjacent in bf16; their mean, 257, is not representable.
        let x = tensor(&[256.0, 258.0, 256.0, 258.0], [1, 2, 1, 2]).cast(DType::BF16);
        let y = norm.forward(x);
        assert_eq!(y.dtype(), DType::BF16);
        let y: Vec<f32> = y.into_data().convert_dtype(DType::F32).into_vec().unwrap();
        assert_eq!(y, [-1.0, 1.0, -1.0, 1.0]);
    }

    #[test]
    fn parameters_have_the_names_of_the_checkpoint() {
        let mut names = Vec::new();
        let mut norm = LayerNorm { weight: tensor(&[1.0], [1]), bias: tensor(&[0.0], [1]), epsilon: 0.0 };
        norm.parameters("", &mut |name, _| names.push(name.to_string()));
        norm.parameters("block.norm1", &mut |name, _| names.push(name.to_string()));
        assert_eq!(names, ["weight", "bias", "block.norm1.weight", "block.norm1.bias"]);
    }

    #[test]
    fn rms_norm_takes_no_mean_off() {
        let norm = RmsNorm { weight: tensor(&[1.0, 10.0], [2]), epsilon: 0.0 };
        let y = norm.forward(tensor(&[3.0, 3.0], [1, 2]));
        y.into_data().assert_approx_eq::<f32>(&TensorData::from([[1.0, 10.0]]), Tolerance::absolute(1e-6));
    }
}
