//! Convolutions by cuDNN or, where it is missing or refuses, by Burn, with 16-bit values summed in f32.
//!
//! Burn tries several kernels and takes the fastest, which for a new shape takes the better part of a minute; one of them
//! (`conv_direct`) sums in the dtype of its inputs, and in bf16 a sum of thousands of products loses small terms. So for 16 bits
//! the tensor-core kernel is requested by name, and what it does not accept is computed in f32; there TF32 loses nothing of
//! values with no more bits.

use std::sync::{Arc, LazyLock};

use burn::tensor::{DType, Shape, Tensor, ops::ConvOptions};
use burn_cubecl::kernel::{
    cast,
    conv::{ConvStrategy, conv_data_backward, conv_forward, conv_weight_backward},
    into_contiguous,
};

use super::{
    CudaTensor, RawTensor,
    cudnn::{Convolution, Cudnn, Direction, Handle, Task, Type},
    dims, empty, raw_tensor,
    ready::{Plans, Ready},
    stream::{ask, is_open},
    tensors,
};
use crate::cuda::paths;

/// The convolution of `x` `[B, in, H, W]` with `weight` `[out, in, k, k]`, plus a `bias` `[out]`.
pub fn forward([x, weight]: [CudaTensor; 2], bias: Option<RawTensor>, options: ConvOptions<2>) -> RawTensor {
    let ([batch, _, height, width], [outputs, _, down, across]) = (dims::<4>(&x), dims::<4>(&weight));
    let to = |from: usize, kernel: usize| (from + 2 * options.padding[0] - kernel) / options.stride[0] + 1;
    let output = [batch, outputs, to(height, down), to(width, across)];
    let shapes = [dims(&x), dims(&weight), output];
    if let Some(y) = by_cudnn(Direction::Forward, [&x, &weight], shapes, &options) {
        return match bias {
            None => raw_tensor(y),
            Some(bias) => {
                let bias = Tensor::<1>::from_dispatch(bias).reshape([1, outputs, 1, 1]);
                (Tensor::<4>::from_dispatch(raw_tensor(y)) + bias).into_dispatch()
            }
        };
    }
    let bias = bias.map(|bias| tensors([bias]));
    summed_in_f32([x, weight], true, |[x, weight], strategy| {
        let bias = bias.clone().map(|[bias]| cast(bias, x.dtype));
        conv_forward(x, weight, bias, options.clone(), strategy).ok()
    })
}

/// The gradient of an input of `shape`, from the gradient of the output and the weight.
pub fn input_gradient([gradient, weight]: [CudaTensor; 2], shape: [usize; 4], options: ConvOptions<2>) -> RawTensor {
    let shapes = [shape, dims(&weight), dims(&gradient)];
    if let Some(dx) = by_cudnn(Direction::Input, [&weight, &gradient], shapes, &options) {
        return raw_tensor(dx);
    }
    // With a stride, the tensor-core strategy uses another kernel, in 16 bits.
    let accelerated = options.stride == [1; 2];
    summed_in_f32([gradient, weight], accelerated, |[gradient, weight], strategy| {
        conv_data_backward(gradient, weight, Shape::from(shape), options.clone(), strategy).ok()
    })
}

/// The gradient of a weight of `shape`, from the input and the gradient of the output.
pub fn weight_gradient([x, gradient]: [CudaTensor; 2], shape: [usize; 4], options: ConvOptions<2>) -> RawTensor {
    let shapes = [dims(&x), shape, dims(&gradient)];
    if let Some(dw) = by_cudnn(Direction::Weight, [&x, &gradient], shapes, &options) {
        return raw_tensor(dw);
    }
    summed_in_f32([x, gradient], true, |[x, gradient], strategy| {
        conv_weight_backward(x, gradient, Shape::from(shape), options.clone(), strategy).ok()
    })
}

/// Applies `f` to the inputs: in 16 bits on tensor cores if possible, else in f32.
fn summed_in_f32(
    inputs: [CudaTensor; 2],
    accelerated: bool,
    f: impl Fn([CudaTensor; 2], ConvStrategy) -> Option<CudaTensor>,
) -> RawTensor {
    let dtype = inputs[0].dtype;
    if dtype != DType::F32
        && let Some(output) = accelerated.then(|| f(inputs.clone(), ConvStrategy::ImplicitGemm)).flatten()
    {
        return raw_tensor(output);
    }
    let output = f(inputs.map(|t| cast(t, DType::F32)), ConvStrategy::default());
    raw_tensor(cast(output.expect("one of the kernels that are tried takes every convolution"), dtype))
}

static PLANS: LazyLock<Plans<Task>> = LazyLock::new(Plans::default);

/// Computes the `direction` for these shapes of input, weight and output, if cuDNN is available and accepts it.
fn by_cudnn(
    direction: Direction,
    from: [&CudaTensor; 2],
    [input, weight, output]: [[usize; 4]; 3],
    options: &ConvOptions<2>,
) -> Option<CudaTensor> {
    let cudnn = paths().convolutions.then(Cudnn::shared)??;
    let dtype = match from[0].dtype {
        DType::F32 => Type::F32,
        DType::F16 => Type::F16,
        DType::BF16 => Type::Bf16,
        _ => return None,
    };
    if from[0].dtype != from[1].dtype || !is_open(from[0]) {
        return None;
    }
    let from = from.map(|t| into_contiguous(t.clone()));
    let like = &from[0];
    let task = Task { direction, dtype, input, weight, output, stride: options.stride[0], padding: options.padding[0] };
    let ready = PLANS.get(like, task, || make(cudnn, like, task))?;
    let to = match direction {
        Direction::Forward => output,
        Direction::Input => input,
        Direction::Weight => weight,
    };
    let to = empty(like, to, like.dtype);
    ready.run(&[&from[0], &from[1]], &[&to]).then_some(to)
}

/// Makes the plan.
fn make(cudnn: &'static Cudnn, like: &CudaTensor, task: Task) -> Result<Arc<Ready>, String> {
    let gpu = like.device.index;
    let (convolution, handle) = ask(like, move |stream| {
        let handle = Handle::of(gpu, cudnn, stream.cast())?;
        Ok((Convolution::new(&handle, &task)?, handle))
    })?;
    let workspace = convolution.workspace();
    Ok(Ready::new(task.to_string(), workspace, move |tensors, workspace| {
        let &[a, b, c] = tensors else { return Err("not three tensors".into()) };
        // SAFETY: the tensors have the shapes of the task, the backend holds them until the work is on its stream, and only
        // the backend's thread uses the handle.
        unsafe { convolution.run(&handle, [a, b, c, workspace]) }
    }))
}
