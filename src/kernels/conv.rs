//! Two-dimensional convolution.

use burn::backend::{Dispatch, ops::ModuleOps};
use burn::tensor::{Tensor, module, ops::ConvOptions};
use burn_flex::FlexTensor;

use super::{
    cpu,
    operation::{Operation, Plain, apply},
    patches::{self, Sizes},
    simd::sum,
    winograd,
};

/// The convolution of `x` `[B, in, H, W]` with `weight` `[out, in, k, k]`, plus `bias` `[out]`: `[B, out, H', W']` with
/// `H' = (H + 2·padding - k) / stride + 1`, which must be positive.
///
/// Weight and bias get gradients where they are tracked. Where the weight is not, `x` is not kept.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    let operation = Conv2d { stride, padding, trained: weight.device().is_autodiff() };
    // No bias is a bias without numbers.
    let bias = bias.unwrap_or_else(|| Tensor::empty([0], (&x.device().inner(), x.dtype())));
    apply(operation, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()])
}

#[derive(Clone, Debug)]
struct Conv2d {
    stride: usize,
    padding: usize,
    /// Whether the weight may need a gradient.
    trained: bool,
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    /// Only where the weight is trained.
    x: Option<Plain>,
    weight: Plain,
    /// Of `x`.
    shape: [usize; 4],
}

impl Conv2d {
    fn sizes(&self, [batch, inputs, height, width]: [usize; 4], [outputs, _, down, across]: [usize; 4]) -> Sizes {
        let &Self { stride, padding, .. } = self;
        let to = [(height, down), (width, across)].map(|(from, kernel)| {
            assert!(from + 2 * padding >= kernel, "a kernel of {kernel} does not fit a picture of {from}");
            (from + 2 * padding - kernel) / stride + 1
        });
        let (from, kernel) = ([height, width], [down, across]);
        Sizes { batch, inputs, outputs, from, to, kernel, stride, padding }
    }

    fn options(&self) -> ConvOptions<2> {
        ConvOptions::new([self.stride; 2], [self.padding; 2], [1; 2], 1)
    }
}

impl Operation<3> for Conv2d {
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [Plain; 3]) -> (Plain, Saved) {
        let shape = Tensor::<4>::from_dispatch(x.clone()).dims();
        let saved = Saved { x: self.trained.then(|| x.clone()), weight: weight.clone(), shape };
        let y = match cpu::floats([x, weight, bias]) {
            Ok(all) => {
                let [x, weight, bias] = all.map(cpu::in_order);
                let sizes = self.sizes(shape, cpu::dims(&weight));
                let bias = Some(cpu::numbers(&bias)).filter(|bias| !bias.is_empty());
                let forward = if winograd::suits(&sizes) { winograd::forward } else { patches::forward };
                let y = forward(&sizes, cpu::numbers(&x), cpu::numbers(&weight), bias);
                cpu::plain(cpu::tensor(y, [sizes.batch, sizes.outputs, sizes.to[0], sizes.to[1]]))
            }
            Err([x, weight, bias]) => {
                let [x, weight]: [Tensor<4>; 2] = [x, weight].map(Tensor::from_dispatch);
                let bias = Some(Tensor::<1>::from_dispatch(bias)).filter(|bias| bias.dims() != [0]);
                composed(x, weight, bias, self).into_dispatch()
            }
        };
        (y, saved)
    }

    fn backward(self, saved: Saved, gradient: Plain, wanted: [bool; 3]) -> [Option<Plain>; 3] {
        let Saved { x, weight, shape } = saved;
        let [wants_x, wants_weight, wants_bias] = wanted;
        let x = x.filter(|_| wants_weight);
        // Where `x` is not needed, something else stands in its place.
        match cpu::floats([x.clone().unwrap_or_else(|| gradient.clone()), weight, gradient]) {
            Ok(all) => {
                let [x, weight, g] = all.map(cpu::in_order);
                let kernel = cpu::dims(&weight);
                let sizes = self.sizes(shape, kernel);
                let fast = winograd::suits(&sizes);
                let (dx, dw) = match fast {
                    true => (
                        winograd::input_gradient as fn(&_, &_, &_) -> _,
                        winograd::weight_gradient as fn(&_, &_, &_) -> _,
                    ),
                    false => (
                        patches::input_gradient as fn(&_, &_, &_) -> _,
                        patches::weight_gradient as fn(&_, &_, &_) -> _,
                    ),
                };
                let [x, weight, g] = [&x, &weight, &g].map(cpu::numbers);
                [
                    wants_x.then(|| cpu::plain(cpu::tensor(dx(&sizes, g, weight), shape))),
                    wants_weight.then(|| cpu::plain(cpu::tensor(dw(&sizes, x, g), kernel))),
                    wants_bias.then(|| cpu::plain(bias_gradient(&sizes, g))),
                ]
            }
            Err([_, weight, g]) => composed_backward(x, weight, g, shape, wanted, &self),
        }
    }
}

/// The sums over all places of a channel, sample after sample: `[out]`.
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
    let sums = cpu::build(
        sizes.outputs,
        1,
        #[inline(always)]
        |i, place| {
            place[0].write(channel(i));
        },
    );
    cpu::tensor(sums, [sizes.outputs])
}

/// The same operation on any backend and dtype.
fn composed(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, operation: &Conv2d) -> Tensor<4> {
    let [batch, inputs, height, width] = x.dims();
    let [outputs, _, down, across] = weight.dims();
    if ([down, across], operation.stride, operation.padding) != ([1, 1], 1, 0) {
        return module::conv2d(x, weight, bias, operation.options());
    }
    // A matrix product: one pointwise convolution on CUDA is known to go wrong on wide inputs (cubek#519).
    let y = weight.flatten::<2>(1, 3).unsqueeze().matmul(x.reshape([batch, inputs, height * width]));
    let y = match bias {
        Some(bias) => y + bias.reshape([1, outputs, 1]),
        None => y,
    };
    y.reshape([batch, outputs, height, width])
}

/// The gradients on any backend and dtype.
fn composed_backward(
    x: Option<Plain>,
    weight: Plain,
    g: Plain,
    shape: [usize; 4],
    [wants_x, wants_weight, wants_bias]: [bool; 3],
    operation: &Conv2d,
) -> [Option<Plain>; 3] {
    let dtype = Tensor::<4>::from_dispatch(g.clone()).dtype();
    let like_x = || {
        let device = Tensor::<4>::from_dispatch(g.clone()).device();
        // Only its shape is read.
        Tensor::<4>::zeros([1; 4], (&device, dtype)).expand(shape).into_dispatch()
    };
    let dx = || Dispatch::conv2d_x_backward(like_x(), weight.clone(), g.clone(), operation.options());
    let dw = || {
        let x = x.clone().expect("kept where the weight is trained");
        Dispatch::conv2d_weight_backward(x, weight.clone(), g.clone(), operation.options())
    };
    let db = || {
        let sums = Tensor::<4>::from_dispatch(g.clone()).sum_dim(3).sum_dim(2).sum_dim(0);
        let [_, outputs, _, _] = sums.dims();
        sums.reshape([outputs]).into_dispatch()
    };
    [wants_x.then(dx), wants_weight.then(dw), wants_bias.then(db)]
}
