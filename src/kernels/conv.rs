//! Two-dimensional convolution.

use burn::backend::{Dispatch, ops::ModuleOps};
use burn::tensor::{FloatDType, Tensor, module, ops::ConvOptions};
use burn_flex::FlexTensor;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu, lift,
    matmul::{assert_one_dtype, matmul},
    operation::{Operation, Plain, apply},
    patches::{self, Company, Sizes},
    simd::sum,
    winograd,
};

/// The convolution of `x` `[B, in, H, W]` with `weight` `[out, in, k, k]`, plus `bias` `[out]`: `[B, out, H', W']` with
/// `H' = (H + 2·padding - k) / stride + 1`, which must be positive. Panics where the channels do not fit each other.
///
/// Weight and bias get gradients where they are tracked. Where the weight is not, `x` is not kept.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    convolve(x, weight, bias, Conv2d { stride, padding: [padding; 2], company: Company::Any, trained: false })
}

/// [`conv2d`], where on the CPU in f32 each sample has the bits that it has alone.
pub fn conv2d_by_sample(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
) -> Tensor<4> {
    convolve(x, weight, bias, Conv2d { stride, padding: [padding; 2], company: Company::OfSample, trained: false })
}

/// [`conv2d`] of whole pictures or of some of their rows, with so many zeros above and below `x` and at either side: of some rows
/// none above and below, as the caller brings the rows that they see. `height` is that of the whole output.
///
/// On the CPU in f32 a row has the same bits whatever rows and samples are with it, if those of a stride of 1 begin with an even
/// row of the whole, and if 3×3 kernels have at most 512 input channels.
pub fn conv2d_rows(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: [usize; 2],
    height: usize,
) -> Tensor<4> {
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    let ours = cpu::are_floats(&[&x, &weight]);
    let [x, weight] = [x, weight].map(Tensor::<4>::from_dispatch);
    if ours {
        let company = Company::None { height };
        return convolve(x, weight, bias, Conv2d { stride, padding, company, trained: false });
    }
    // Elsewhere a convolution has as many zeros above as beside.
    let [above, beside] = padding;
    let [batch, channels, rows, _] = x.dims();
    let x = match beside.checked_sub(above).expect("there are zeros above only where there are some beside") {
        0 => x,
        more => {
            let zeros = Tensor::zeros([batch, channels, rows, more], (&x.device().inner(), x.dtype()));
            let zeros = lift(zeros, &x);
            Tensor::cat(vec![zeros.clone(), x, zeros], 3)
        }
    };
    conv2d(x, weight, bias, stride, above)
}

fn convolve(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, operation: Conv2d) -> Tensor<4> {
    let operation = Conv2d { trained: weight.device().is_autodiff(), ..operation };
    let (inputs, [outputs, each, ..]) = (x.dims()[1], weight.dims());
    assert_eq!(inputs, each, "the weight is for pictures of so many channels");
    assert!(
        bias.as_ref().is_none_or(|bias| bias.dims() == [outputs]),
        "the bias is not one number for each of {outputs} channels"
    );
    assert_one_dtype("a convolution", &[x.dtype(), weight.dtype(), bias.as_ref().map_or(x.dtype(), Tensor::dtype)]);
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    match bias {
        Some(bias) => apply(operation, [x, weight, bias.into_dispatch()]),
        None => apply(operation, [x, weight]),
    }
}

#[derive(Clone, Debug)]
struct Conv2d {
    stride: usize,
    /// Above and below, and at either side.
    padding: [usize; 2],
    company: Company,
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
        let to = [(height, down, padding[0]), (width, across, padding[1])].map(|(from, kernel, padding)| {
            assert!(from + 2 * padding >= kernel, "a kernel of {kernel} does not fit a picture of {from}");
            (from + 2 * padding - kernel) / stride + 1
        });
        let (from, kernel) = ([height, width], [down, across]);
        let pairs = match self.company {
            Company::Any => batch * to[0].div_ceil(2),
            Company::OfSample => to[0].div_ceil(2),
            Company::None { height } => height.div_ceil(2),
        };
        Sizes { batch, inputs, outputs, from, to, kernel, stride, padding, company: self.company, pairs }
    }

    /// Whether each place is a product of the weight with what is at that place.
    ///
    /// Where there is no kernel of our own, it is computed as one: a pointwise convolution on CUDA is known to go wrong on
    /// wide inputs (cubek#519).
    fn is_product(&self, weight: [usize; 4]) -> bool {
        ([weight[2], weight[3]], self.stride, self.padding) == ([1, 1], 1, [0; 2])
    }

    fn options(&self) -> ConvOptions<2> {
        ConvOptions::new([self.stride; 2], self.padding, [1; 2], 1)
    }
}

/// Of `x`, the weight and perhaps a bias.
impl<const N: usize> Operation<N> for Conv2d {
    type Saved = Saved;

    fn forward(&self, inputs: [Plain; N]) -> (Plain, Saved) {
        let (x, weight) = (inputs[0].clone(), inputs[1].clone());
        let shape = Tensor::<4>::from_dispatch(x.clone()).dims();
        let saved = Saved { x: self.trained.then_some(x), weight, shape };
        let y = match cpu::floats(inputs) {
            Ok(inputs) => {
                let inputs = inputs.map(cpu::in_order);
                let (x, weight) = (&inputs[0], &inputs[1]);
                let sizes = self.sizes(shape, cpu::dims(weight));
                let forward = if winograd::suits(&sizes) { winograd::forward } else { patches::forward };
                let y = forward(&sizes, cpu::numbers(x), cpu::numbers(weight), inputs.get(2).map(cpu::numbers));
                cpu::plain(cpu::tensor(y, [sizes.batch, sizes.outputs, sizes.to[0], sizes.to[1]]))
            }
            Err(inputs) => {
                let [x, weight] = [0, 1].map(|i| Tensor::from_dispatch(inputs[i].clone()));
                let bias = inputs.get(2).cloned().map(Tensor::from_dispatch);
                composed(x, weight, bias, self).into_dispatch()
            }
        };
        (y, saved)
    }

    fn backward(self, saved: Saved, gradient: Plain, wanted: [bool; N]) -> [Option<Plain>; N] {
        let Saved { x, weight, shape } = saved;
        let mut wanted = wanted.into_iter();
        let wanted @ [wants_x, wants_weight, wants_bias] = std::array::from_fn(|_| wanted.next() == Some(true));
        let x = x.filter(|_| wants_weight);
        // Where `x` is not needed, something else stands in its place.
        let gradients = match cpu::floats([x.clone().unwrap_or_else(|| gradient.clone()), weight, gradient]) {
            Ok(all) => {
                let [x, weight, g] = all.map(cpu::in_order);
                let kernel = cpu::dims(&weight);
                let sizes = self.sizes(shape, kernel);
                let fast = winograd::suits_gradients(&sizes);
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
        };
        let mut gradients = gradients.into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
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
    if !operation.is_product(weight.dims()) {
        #[cfg(feature = "cuda")]
        let (x, weight) = {
            let both = [x, weight].map(Tensor::into_dispatch);
            if cuda::takes(&both) {
                let bias = bias.map(Tensor::into_dispatch);
                return Tensor::from_dispatch(cuda::conv::forward(both, bias, operation.options()));
            }
            let [x, weight] = both.map(Tensor::from_dispatch);
            (x, weight)
        };
        #[expect(clippy::disallowed_methods, reason = "the number types have been compared")]
        return module::conv2d(x, weight, bias, operation.options());
    }
    let [outputs, ..] = weight.dims();
    let y = matmul(weight.flatten::<2>(1, 3).unsqueeze(), x.reshape([batch, inputs, height * width]));
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
    let [g4, w4] = [&g, &weight].map(|t| Tensor::<4>::from_dispatch(t.clone()));
    let (dtype, [batch, inputs, height, width], [outputs, ..]) = (g4.dtype(), shape, w4.dims());
    let product = operation.is_product(w4.dims());
    // What stands at the places of a picture, channel by channel.
    let places = |t: Tensor<4>, channels| t.reshape([batch, channels, height * width]);
    let dx = || match product {
        true => {
            let weight = w4.clone().reshape([1, outputs, inputs]);
            matmul(weight.swap_dims(1, 2), places(g4.clone(), outputs)).reshape(shape).into_dispatch()
        }
        #[cfg(feature = "cuda")]
        false if cuda::takes(&[g.clone(), weight.clone()]) => {
            cuda::conv::input_gradient([g.clone(), weight.clone()], shape, operation.options())
        }
        false => {
            // Only its shape is read.
            let like_x = Tensor::<4>::zeros([1; 4], (&g4.device(), dtype)).expand(shape).into_dispatch();
            Dispatch::conv2d_x_backward(like_x, weight.clone(), g.clone(), operation.options())
        }
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
            #[cfg(feature = "cuda")]
            false if cuda::takes(&[x.clone(), g.clone()]) => {
                cuda::conv::weight_gradient([x, g.clone()], w4.dims(), operation.options())
            }
            false => Dispatch::conv2d_weight_backward(x, weight.clone(), g.clone(), operation.options()),
        }
    };
    let db = || in_f32(g4.clone(), |g| g.sum_dim(3).sum_dim(2).sum_dim(0)).reshape([outputs]).into_dispatch();
    [wants_x.then(dx), wants_weight.then(dw), wants_bias.then(db)]
}

/// A sum of many numbers, which would lose what is small in bf16: added up in f32, then of the type that it had.
fn in_f32<const D: usize>(x: Tensor<D>, sum: impl Fn(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let dtype: FloatDType = x.dtype().into();
    sum(x.cast(FloatDType::F32)).cast(dtype)
}
