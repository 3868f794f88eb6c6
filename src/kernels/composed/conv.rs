//! Convolutions.

use burn::backend::{Dispatch, ops::ModuleOps};
use burn::tensor::{FloatDType, Tensor, module, ops::ConvOptions};

use crate::kernels::{dispatch::by_way, matmul, operation::RawTensor};

/// The output, computed by Burn's convolution or as a product.
pub fn forward(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, options: ConvOptions<2>) -> Tensor<4> {
    let [batch, inputs, height, width] = x.dims();
    if !is_product(weight.dims(), &options) {
        let bias = bias.map(Tensor::into_dispatch);
        let y = by_way!([x.into_dispatch(), weight.into_dispatch()],
            Cuda(both) => cuda::conv::forward(both, bias, options),
            Composed(both) => {
                let ([x, weight], bias) = (both.map(Tensor::from_dispatch), bias.map(Tensor::from_dispatch));
                #[expect(clippy::disallowed_methods, reason = "the dtypes have been compared")]
                module::conv2d(x, weight, bias, options).into_dispatch()
            },
        );
        return Tensor::from_dispatch(y);
    }
    let [outputs, ..] = weight.dims();
    let y = matmul(weight.flatten::<2>(1, 3).unsqueeze(), x.reshape([batch, inputs, height * width]));
    let y = match bias {
        Some(bias) => y + bias.reshape([1, outputs, 1]),
        None => y,
    };
    y.reshape([batch, outputs, height, width])
}

/// The `wanted` gradients of `x` (of `shape`), weight and bias.
pub fn backward(
    x: Option<RawTensor>,
    weight: RawTensor,
    g: RawTensor,
    shape: [usize; 4],
    [wants_x, wants_weight, wants_bias]: [bool; 3],
    options: ConvOptions<2>,
) -> [Option<RawTensor>; 3] {
    let [g4, w4] = [&g, &weight].map(|t| Tensor::<4>::from_dispatch(t.clone()));
    let (dtype, [batch, inputs, height, width], [outputs, ..]) = (g4.dtype(), shape, w4.dims());
    let product = is_product(w4.dims(), &options);
    // The pixels of an image, channel by channel.
    let places = |t: Tensor<4>, channels| t.reshape([batch, channels, height * width]);
    let dx = || match product {
        true => {
            let weight = w4.clone().reshape([1, outputs, inputs]);
            matmul(weight.swap_dims(1, 2), places(g4.clone(), outputs)).reshape(shape).into_dispatch()
        }
        false => by_way!([g.clone(), weight.clone()],
            Cuda(both) => cuda::conv::input_gradient(both, shape, options.clone()),
            Composed([g, weight]) => {
                // Only its shape is read.
                let like_x = Tensor::<4>::zeros([1; 4], (&g4.device(), dtype)).expand(shape).into_dispatch();
                Dispatch::conv2d_x_backward(like_x, weight, g, options.clone())
            },
        ),
    };
    let dw = || {
        let x = x.clone().expect("kept where the weight is trained");
        match product {
            true => {
                let x = places(Tensor::from_dispatch(x), inputs).swap_dims(1, 2);
                in_f32(matmul(places(g4.clone(), outputs), x), |each| each.sum_dim(0))
                    .reshape([outputs, inputs, 1, 1])
                    .into_dispatch()
            }
            false => by_way!([x, g.clone()],
                Cuda(both) => cuda::conv::weight_gradient(both, w4.dims(), options.clone()),
                Composed([x, g]) => Dispatch::conv2d_weight_backward(x, weight.clone(), g, options.clone()),
            ),
        }
    };
    let db = || in_f32(g4.clone(), |g| g.sum_dim(3).sum_dim(2).sum_dim(0)).reshape([outputs]).into_dispatch();
    [wants_x.then(dx), wants_weight.then(dw), wants_bias.then(db)]
}

/// Computes a long sum in f32, where bf16 would lose small terms; the result has the dtype of `x`.
fn in_f32<const D: usize>(x: Tensor<D>, sum: impl Fn(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let dtype: FloatDType = x.dtype().into();
    sum(x.cast(FloatDType::F32)).cast(dtype)
}

/// Whether each output pixel is a product of the weight with the input pixel.
///
/// Where kiln has no kernel of its own, it is computed as such a product: pointwise convolutions on CUDA give wrong results
/// on wide inputs (cubek#519).
fn is_product([_, _, height, width]: [usize; 4], options: &ConvOptions<2>) -> bool {
    (height, width, options.stride, options.padding) == (1, 1, [1; 2], [0; 2])
}
