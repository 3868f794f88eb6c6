//! Two-dimensional convolution.

use burn::tensor::{Tensor, ops::ConvOptions};

use super::{
    composed,
    cpu::{self, Company, Sizes},
    dispatch::by_way,
    on_tape_of,
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};

/// The convolution of `x` `[B, in, H, W]` with `weight` `[out, in, k, k]`, plus `bias` `[out]`: `[B, out, H', W']` with
/// `H' = (H + 2·padding - k) / stride + 1`, which must be positive. Panics if the channels do not match.
///
/// Weight and bias get gradients if they are on a tape. If the weight is not, `x` is not kept.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    convolve(x, weight, bias, Conv2d { stride, padding: [padding; 2], company: Company::Any, trained: false })
}

/// [`conv2d`], but on the CPU in f32 each sample gets the same bits as alone.
pub fn conv2d_by_sample(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
) -> Tensor<4> {
    convolve(x, weight, bias, Conv2d { stride, padding: [padding; 2], company: Company::OfSample, trained: false })
}

/// [`conv2d`] of whole images or of a band of rows. `padding` is the number of zeros above and below, and at the left and right:
/// for a band, none above and below, since the caller provides the neighboring rows. `height` is that of the whole output.
///
/// On the CPU in f32 a row gets the same bits whatever rows and samples are processed with it, provided that bands with stride 1
/// begin at an even row of the image, and that 3×3 kernels have at most 512 input channels.
pub fn conv2d_rows(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: [usize; 2],
    height: usize,
) -> Tensor<4> {
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    let ours = cpu::are_cpu_f32(&[&x, &weight]);
    let [x, weight] = [x, weight].map(Tensor::<4>::from_dispatch);
    if ours {
        let company = Company::None { height };
        return convolve(x, weight, bias, Conv2d { stride, padding, company, trained: false });
    }
    // Other backends pad all sides equally.
    let [above, beside] = padding;
    let [batch, channels, rows, _] = x.dims();
    let x = match beside.checked_sub(above).expect("there are zeros above only where there are some beside") {
        0 => x,
        more => {
            let zeros = Tensor::zeros([batch, channels, rows, more], (&x.device().inner(), x.dtype()));
            let zeros = on_tape_of(zeros, &x);
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
    /// Zeros above and below, and at the left and right.
    padding: [usize; 2],
    company: Company,
    /// Whether the weight may need a gradient.
    trained: bool,
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    /// The input, only if the weight is trained.
    x: Option<RawTensor>,
    weight: RawTensor,
    /// The shape of `x`.
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
    fn options(&self) -> ConvOptions<2> {
        ConvOptions::new([self.stride; 2], self.padding, [1; 2], 1)
    }
}

/// The inputs are `x`, the weight and perhaps a bias.
impl<const N: usize> Operation<N> for Conv2d {
    type Saved = Saved;

    fn forward(&self, inputs: [RawTensor; N]) -> (RawTensor, Saved) {
        let (x, weight) = (inputs[0].clone(), inputs[1].clone());
        let shape = Tensor::<4>::from_dispatch(x.clone()).dims();
        let saved = Saved { x: self.trained.then_some(x), weight, shape };
        let y = by_way!(inputs,
            Cpu(inputs) => {
                let sizes = self.sizes(shape, cpu::dims(&inputs[1]));
                cpu::conv::forward(&sizes, [inputs[0].clone(), inputs[1].clone()], inputs.get(2).cloned())
            },
            Composed(inputs) => {
                let [x, weight] = [0, 1].map(|i| Tensor::from_dispatch(inputs[i].clone()));
                let bias = inputs.get(2).cloned().map(Tensor::from_dispatch);
                composed::conv::forward(x, weight, bias, self.options()).into_dispatch()
            },
        );
        (y, saved)
    }

    fn backward(self, saved: Saved, gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N] {
        let Saved { x, weight, shape } = saved;
        let wanted @ [_, wants_weight, _] = [0, 1, 2].map(|i| wanted.get(i) == Some(&true));
        let x = x.filter(|_| wants_weight);
        // A placeholder if `x` is not needed.
        let gradients = by_way!([x.clone().unwrap_or_else(|| gradient.clone()), weight, gradient],
            Cpu(all) => cpu::conv::backward(&self.sizes(shape, cpu::dims(&all[1])), all, wanted),
            Composed([_, weight, g]) => composed::conv::backward(x, weight, g, shape, wanted, self.options()),
        );
        let mut gradients = gradients.into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
    }
}
