//! Convolutions, by whichever method is faster for their sizes.

use burn_flex::FlexTensor;

use super::{
    loops::build,
    patches::{self, Sizes},
    simd::sum,
    tensor::{contiguous, dims, raw_tensor, tensor, values},
    winograd,
};
use crate::kernels::operation::RawTensor;

/// The output: `[B, out, H', W']`.
pub fn forward(sizes: &Sizes, [x, weight]: [FlexTensor; 2], bias: Option<FlexTensor>) -> RawTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let forward = if winograd::suits(sizes) { winograd::forward } else { patches::forward };
    let y = forward(sizes, values(&x), values(&weight), bias.as_ref().map(values));
    raw_tensor(tensor(y, [sizes.batch, sizes.outputs, sizes.to[0], sizes.to[1]]))
}

/// The wanted gradients of `x`, weight and bias. `x` is read only for that of the weight.
pub fn backward(
    sizes: &Sizes,
    [x, weight, g]: [FlexTensor; 3],
    [wants_x, wants_weight, wants_bias]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let [x, weight, g] = [x, weight, g].map(contiguous);
    let kernel = dims::<4>(&weight);
    let shape = [sizes.batch, sizes.inputs, sizes.from[0], sizes.from[1]];
    let fast = winograd::suits_gradients(sizes);
    let (dx, dw) = match fast {
        true => (winograd::input_gradient as fn(&_, &_, &_) -> _, winograd::weight_gradient as fn(&_, &_, &_) -> _),
        false => (patches::input_gradient as fn(&_, &_, &_) -> _, patches::weight_gradient as fn(&_, &_, &_) -> _),
    };
    let [x, weight, g] = [&x, &weight, &g].map(values);
    [
        wants_x.then(|| raw_tensor(tensor(dx(sizes, g, weight), shape))),
        wants_weight.then(|| raw_tensor(tensor(dw(sizes, x, g), kernel))),
        wants_bias.then(|| raw_tensor(bias_gradient(sizes, g))),
    ]
}

/// The sum over all pixels of each channel, sample after sample: `[out]`.
fn bias_gradient(sizes: &Sizes, g: &[f32]) -> FlexTensor {
    let places = sizes.to[0] * sizes.to[1];
    let channel = |channel: usize| {
        let plane = |sample: usize| &g[(sample * sizes.outputs + channel) * places..][..places];
        (0..sizes.batch)
            .map(|sample| {
                sum(
                    [plane(sample)],
                    #[inline(always)]
                    |[g]| g,
                )
            })
            .sum()
    };
    let sums = build(
        sizes.outputs,
        1,
        #[inline(always)]
        |i, place| {
            place[0].write(channel(i));
        },
    );
    tensor(sums, [sizes.outputs])
}
