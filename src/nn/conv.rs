//! Two-dimensional convolution, padding and upsampling.

use burn::tensor::{DType, Device, Tensor};

use super::{Adapter, Delta, Parameter, Parameters, Worn, delta::add_to_bias};
use crate::{kernels, weights::Weights};

/// A convolution over `[B, C, H, W]`, plus its attached adapters (LoCon): they treat the kernel as a matrix `[out, in · kernel²]`,
/// and act on the activation as those of a linear layer do.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    weight: Tensor<4>,
    /// `[out]`.
    bias: Option<Tensor<1>>,
    /// The step between output pixels, in input pixels.
    stride: usize,
    /// Zeros added on each side.
    padding: usize,
    /// Whether each sample must get the same bits in a batch as alone.
    by_sample: bool,
    /// The shape of the weight in the checkpoint, known even if only headers were read.
    dims: [usize; 4],
    /// The adapters attached while it is lent.
    pub(super) worn: Worn,
}

impl Conv2d {
    fn new(weight: Tensor<4>, bias: Option<Tensor<1>>, dims: [usize; 4], stride: usize, padding: usize) -> Self {
        Self { weight, bias, stride, padding, by_sample: false, dims, worn: Worn::default() }
    }

    /// Takes `weight` and `bias`; stride 1, and padding that keeps the size.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Self {
        let dims = [outputs, inputs, kernel, kernel];
        Self::new(weights.tensor("weight", dims), Some(weights.tensor("bias", [outputs])), dims, 1, kernel / 2)
    }

    /// Takes `weight`; divides images into patches of `side` × `side` pixels, each of which becomes one output position.
    pub fn load_patches(weights: &Weights, inputs: usize, outputs: usize, side: usize) -> Self {
        let dims = [outputs, inputs, side, side];
        Self::new(weights.tensor("weight", dims), None, dims, side, 0)
    }

    /// The same with another stride (in input pixels) and padding (zeros on each side).
    pub fn with(self, stride: usize, padding: usize) -> Self {
        Self { stride, padding, ..self }
    }

    /// The same, but on the CPU in f32 a sample gets the same bits in any batch, and from [`forward_rows`](Self::forward_rows), as
    /// alone. Otherwise small feature maps of a large batch may take a faster path.
    pub fn by_sample(self) -> Self {
        Self { by_sample: true, ..self }
    }

    /// Widens it to `inputs` input channels; the weights of the new channels are zero.
    pub fn widen(&mut self, inputs: usize) {
        let [outputs, before, height, width] = self.weight.dims();
        let added = [outputs, inputs - before, height, width];
        let zeros = Tensor::zeros(added, (&self.weight.device(), self.weight.dtype()));
        self.weight = Tensor::cat(vec![self.weight.clone(), zeros], 1);
        self.dims[1] = inputs;
    }

    /// The shape of its kernel as a matrix, `[out, in · kernel²]`.
    pub(super) fn matrix_dims(&self) -> [usize; 2] {
        let [outputs, inputs, height, width] = self.dims;
        [outputs, inputs * height * width]
    }

    /// Merges `adapter` into the kernel, or the bias: computed in f32, rounded once to the kernel's dtype.
    pub fn merge(&mut self, adapter: &Adapter) {
        if let Delta::Bias(change) = &adapter.delta {
            self.bias = Some(add_to_bias(self.bias.take(), change.clone() * adapter.scale, self.dtype()));
            return;
        }
        let own = self.matrix();
        let mut changed = own + adapter.delta.dense() * adapter.scale;
        if let Some(magnitude) = &adapter.magnitude {
            changed = changed.clone() * magnitude.gain(|| changed).unsqueeze_dim(1);
        }
        self.weight = changed.reshape(self.dims).cast(self.weight.dtype());
    }

    /// The kernel in f32, `[out, in · kernel²]`.
    fn matrix(&self) -> Tensor<2> {
        self.weight.clone().cast(DType::F32).reshape(self.matrix_dims())
    }

    /// The device of its weight.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// The dtype in which it computes.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The number of input channels.
    pub fn inputs(&self) -> usize {
        self.weight.dims()[1]
    }

    /// The number of output channels.
    pub fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Zeros added on each side.
    pub fn padding(&self) -> usize {
        self.padding
    }

    /// `[B, in, H, W]` → `[B, out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.own(x.clone());
        match self.worn.of_all() {
            Some(adapters) => self.wear(adapters, y, x),
            None => {
                let each = y.split(1, 0).into_iter().zip(x.split(1, 0)).enumerate();
                Tensor::cat(each.map(|(row, (y, x))| self.wear(self.worn.of(row), y, x)).collect(), 0)
            }
        }
    }

    /// Adds the adapters' contributions for `x` to `y`, the output of the convolution.
    fn wear(&self, adapters: &[Adapter], mut y: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        let own = adapters.iter().any(|adapter| adapter.magnitude.is_some()).then(|| y.clone());
        for adapter in adapters {
            let change = self.change(&adapter.delta, x.clone()) * adapter.scale;
            y = match (&adapter.magnitude, &own) {
                // As in a linear layer: the bias is not rescaled.
                (Some(magnitude), Some(own)) => {
                    let gain = magnitude.gain(|| self.matrix() + adapter.delta.dense() * adapter.scale);
                    let per_channel = |values: Tensor<1>| values.cast(own.dtype()).reshape([1, self.dims[0], 1, 1]);
                    let gain = per_channel(gain);
                    let without_bias = match &self.bias {
                        Some(bias) => own.clone() - per_channel(bias.clone()),
                        None => own.clone(),
                    };
                    y + without_bias * (gain.clone() - 1.0) + change * gain
                }
                _ => y + change,
            };
        }
        y
    }

    /// The output for `x` without adapters.
    fn own(&self, x: Tensor<4>) -> Tensor<4> {
        let &Self { stride, padding, .. } = self;
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        match self.by_sample {
            true => {
                let height = (x.dims()[2] + 2 * padding - weight.dims()[2]) / stride + 1;
                kernels::conv2d_rows(x, weight, bias, stride, [padding; 2], height)
            }
            false if self.worn.is_by_row() => kernels::conv2d_by_sample(x, weight, bias, stride, padding),
            false => kernels::conv2d(x, weight, bias, stride, padding),
        }
    }

    /// [`forward`](Self::forward) for a band of rows of images whose full outputs have this `height`: nothing is padded above and
    /// below. See [`kernels::conv2d_rows`].
    pub fn forward_rows(&self, x: Tensor<4>, height: usize) -> Tensor<4> {
        kernels::conv2d_rows(x, self.weight.clone(), self.bias.clone(), self.stride, [0, self.padding], height)
    }

    /// The convolution of `x` with a change of the kernel, `[B, out, H', W']`; or a change of the bias, `[1, out, 1, 1]`.
    fn change(&self, delta: &Delta, x: Tensor<4>) -> Tensor<4> {
        let [outputs, inputs, height, width] = self.dims;
        let dtype = x.dtype();
        let through = |x, kernel: Tensor<2>, outputs| {
            let kernel = kernel.cast(dtype).reshape([outputs, inputs, height, width]);
            kernels::conv2d(x, kernel, None, self.stride, self.padding)
        };
        match delta {
            Delta::LowRank { a, b } => {
                let rank = a.dims()[0];
                let pointwise = b.clone().cast(dtype).reshape([outputs, rank, 1, 1]);
                kernels::conv2d(through(x, a.clone(), rank), pointwise, None, 1, 0)
            }
            Delta::Kronecker { .. } | Delta::Dense(_) => through(x, delta.dense(), outputs),
            Delta::Bias(bias) => bias.clone().cast(dtype).reshape([1, outputs, 1, 1]),
        }
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

/// Adds a row of zeros at the bottom and a column at the right: `[B, C, H, W]` → `[B, C, H + 1, W + 1]`.
///
/// Written out because padding in the pinned version of Burn loses the dtype.
pub fn pad_bottom_right(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let zeros = kernels::on_tape_of(
        Tensor::zeros([batch, channels, height + 1, width + 1], (&x.device().inner(), x.dtype())),
        &x,
    );
    zeros.slice_assign([0..batch, 0..channels, 0..height, 0..width], x)
}

/// Nearest-neighbor upsampling by two: `[B, C, H, W]` → `[B, C, 2H, 2W]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    kernels::upsample_nearest(x)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    fn numbers<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().convert_dtype(DType::F32).into_vec().unwrap()
    }

    #[test]
    fn padding_and_upsampling_keep_the_dtype() {
        let x = numbers([1, 1, 1, 2]).cast(DType::BF16);
        let padded = pad_bottom_right(x.clone());
        assert_eq!((padded.dtype(), padded.dims()), (DType::BF16, [1, 1, 2, 3]));
        assert_eq!(values(padded), [-5.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        let doubled = upsample_nearest(x);
        assert_eq!((doubled.dtype(), doubled.dims()), (DType::BF16, [1, 1, 2, 4]));
        assert_eq!(values(doubled), [-5.0, -5.0, 2.0, 2.0, -5.0, -5.0, 2.0, 2.0]);
    }
}
