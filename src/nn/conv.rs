//! Two-dimensional convolution and the two resampling steps that go with it.

use burn::tensor::{Tensor, module, ops::ConvOptions};

use super::{Parameter, Parameters};
use crate::{kernels, weights::Weights};

/// A convolution over `[B, C, H, W]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Tensor<4>,
    /// `[out]`.
    pub bias: Option<Tensor<1>>,
    /// The step between output places, in input places.
    pub stride: usize,
    /// Zeros around each side.
    pub padding: usize,
}

impl Conv2d {
    /// Takes `weight` and `bias`; stride 1 and as many zeros around as keep the size.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self {
            weight: weights.tensor("weight", [outputs, inputs, kernel, kernel]),
            bias: Some(weights.tensor("bias", [outputs])),
            stride: 1,
            padding: kernel / 2,
        }
    }

    /// `[B, in, H, W]` → `[B, out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = kernels::lift(self.weight.clone(), &x);
        let bias = self.bias.clone().map(|bias| kernels::lift(bias, &x));
        let [batch, inputs, height, width] = x.dims();
        let [outputs, _, kernel, _] = weight.dims();
        if kernel == 1 && self.stride == 1 && self.padding == 0 {
            // A matrix product: one pointwise convolution on CUDA is known to go wrong on wide inputs (cubek#519).
            let y = weight.flatten::<2>(1, 3).unsqueeze().matmul(x.reshape([batch, inputs, height * width]));
            let y = match bias {
                Some(bias) => y + bias.reshape([1, outputs, 1]),
                None => y,
            };
            return y.reshape([batch, outputs, height, width]);
        }
        module::conv2d(x, weight, bias, ConvOptions::new([self.stride; 2], [self.padding; 2], [1; 2], 1))
    }
}

impl Parameters for Conv2d {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(&format!("{path}.weight"), Parameter::Kernel(&mut self.weight));
        if let Some(bias) = &mut self.bias {
            visit(&format!("{path}.bias"), Parameter::Vector(bias));
        }
    }
}

/// One row and one column of zeros at the bottom and the right: `[B, C, H, W]` → `[B, C, H + 1, W + 1]`.
///
/// By hand, because the padding of the pinned Burn forgets the element type.
pub fn pad_bottom_right(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let zeros =
        kernels::lift(Tensor::zeros([batch, channels, height + 1, width + 1], (&x.device().inner(), x.dtype())), &x);
    zeros.slice_assign([0..batch, 0..channels, 0..height, 0..width], x)
}

/// Every pixel four times: `[B, C, H, W]` → `[B, C, 2H, 2W]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let x: Tensor<6> = x.reshape([batch, channels, height, 1, width, 1]);
    x.expand([batch, channels, height, 2, width, 2]).reshape([batch, channels, 2 * height, 2 * width])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    fn numbers<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().convert_dtype(DType::F32).into_vec().unwrap()
    }

    #[test]
    fn pointwise_product_equals_the_convolution() {
        let weight = numbers([3, 2, 1, 1]);
        let bias = numbers([3]);
        let x = numbers([2, 2, 3, 4]);
        let layer = Conv2d { weight: weight.clone(), bias: Some(bias.clone()), stride: 1, padding: 0 };
        let expected = module::conv2d(x.clone(), weight, Some(bias), ConvOptions::new([1; 2], [0; 2], [1; 2], 1));
        assert_eq!(values(layer.forward(x)), values(expected));
    }

    #[test]
    fn padding_and_upsampling_keep_the_element_type() {
        let x = numbers([1, 1, 1, 2]).cast(DType::BF16);
        let padded = pad_bottom_right(x.clone());
        assert_eq!((padded.dtype(), padded.dims()), (DType::BF16, [1, 1, 2, 3]));
        assert_eq!(values(padded), [-5.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        let doubled = upsample_nearest(x);
        assert_eq!((doubled.dtype(), doubled.dims()), (DType::BF16, [1, 1, 2, 4]));
        assert_eq!(values(doubled), [-5.0, -5.0, 2.0, 2.0, -5.0, -5.0, 2.0, 2.0]);
    }
}
