//! Convolutions of 16-bit numbers that are added up in f32.
//!
//! Burn tries several kernels and takes the fastest; one of them (`conv_direct`) adds up in the type of its inputs, and in
//! bf16 a sum of thousands of products loses what is small. So the kernel for tensor cores is asked for by name, and what
//! it does not take is computed in f32; there TF32 loses nothing of numbers that have no more bits.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, ops::ConvOptions};
use burn_cubecl::kernel::{
    cast,
    conv::{ConvStrategy, conv_data_backward, conv_forward, conv_weight_backward},
};

use super::{CudaTensor, Plain, plain, takes, tensors};

/// Whether these are on a GPU, in 16 bits.
pub(in crate::kernels) fn is_short(inputs: &[Plain; 2]) -> bool {
    takes(inputs) && inputs.iter().all(|input| input.dtype() != DType::F32)
}

/// The convolution of `x` `[B, in, H, W]` with `weight` `[out, in, k, k]`, plus a `bias` `[out]`.
pub(in crate::kernels) fn forward(inputs: [Plain; 2], bias: Option<Plain>, options: ConvOptions<2>) -> Plain {
    let bias = bias.map(|bias| tensors([bias]));
    summed_in_f32(inputs, true, |[x, weight], strategy| {
        let bias = bias.clone().map(|[bias]| cast(bias, x.dtype));
        conv_forward(x, weight, bias, options.clone(), strategy).ok()
    })
}

/// The gradient of an input of `shape`, from the gradient of the output and the weight.
pub(in crate::kernels) fn input_gradient(inputs: [Plain; 2], shape: [usize; 4], options: ConvOptions<2>) -> Plain {
    // With a stride, the strategy for tensor cores goes another way, in 16 bits.
    let accelerated = options.stride == [1; 2];
    summed_in_f32(inputs, accelerated, |[gradient, weight], strategy| {
        conv_data_backward(gradient, weight, Shape::from(shape), options.clone(), strategy).ok()
    })
}

/// The gradient of a weight of `shape`, from the input and the gradient of the output.
pub(in crate::kernels) fn weight_gradient(inputs: [Plain; 2], shape: [usize; 4], options: ConvOptions<2>) -> Plain {
    summed_in_f32(inputs, true, |[x, gradient], strategy| {
        conv_weight_backward(x, gradient, Shape::from(shape), options.clone(), strategy).ok()
    })
}

/// `f` of the inputs on tensor cores, if it can be done so; else in f32.
fn summed_in_f32(
    inputs: [Plain; 2],
    accelerated: bool,
    f: impl Fn([CudaTensor; 2], ConvStrategy) -> Option<CudaTensor>,
) -> Plain {
    let inputs = tensors(inputs);
    if let Some(output) = accelerated.then(|| f(inputs.clone(), ConvStrategy::ImplicitGemm)).flatten() {
        return plain(output);
    }
    let dtype = inputs[0].dtype;
    let output = f(inputs.map(|t| cast(t, DType::F32)), ConvStrategy::default());
    plain(cast(output.expect("one of the kernels that are tried takes every convolution"), dtype))
}
