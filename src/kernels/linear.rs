//! Matrix products with weights as stored in checkpoints, `[out, in]`.

use burn::tensor::Tensor;

use super::{
    activation::{Activatable, Activated},
    composed, cpu,
    dispatch::by_way,
    formulas::Activation,
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};
#[cfg(feature = "cuda")]
use super::{cuda, dispatch::on_gpu};

/// `x·Wᵀ + b`.
///
/// `x` `[M, in]`, `weight` `[out, in]`, `bias` `[out]` → `[M, out]`. All inputs on a tape get gradients; `x` is kept only for
/// that of the weight.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    linear_by_sample(x, weight, bias, 1)
}

/// [`linear`] of `samples` samples with equally many rows of `x`: on the CPU in f32 each sample gets the same bits as alone.
pub fn linear_by_sample(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, samples: usize) -> Tensor<2> {
    let (operation, x, weight, bias) = operation(x, weight, bias, samples);
    match bias {
        Some(bias) => apply(operation, [x, weight, bias]),
        None => apply(operation, [x, weight]),
    }
}

/// The activation of [`linear_by_sample`], in a `shape` whose last axis is `out` and the others together `M`.
pub fn linear_activated<const D: usize>(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    samples: usize,
    kind: Activation,
    shape: [usize; D],
) -> Tensor<D> {
    let (operation, x, weight, bias) = operation(x, weight, bias, samples);
    let operation = Activated { operation, kind, shape };
    match bias {
        Some(bias) => apply(operation, [x, weight, bias]),
        None => apply(operation, [x, weight]),
    }
}

fn operation(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    samples: usize,
) -> (Linear, RawTensor, RawTensor, Option<RawTensor>) {
    assert_one_dtype("a linear layer", &[x.dtype(), weight.dtype(), bias.as_ref().map_or(x.dtype(), Tensor::dtype)]);
    let operation = Linear { trained: weight.device().is_autodiff(), samples };
    (operation, x.into_dispatch(), weight.into_dispatch(), bias.map(Tensor::into_dispatch))
}

/// Prepacks a weight `[out, in]` for [`linear`]: on the CPU in f32 it is stored column-major, so that it is transposed once and not
/// for every product. The backward pass transposes it back.
pub fn prepack_weight(weight: Tensor<2>) -> Tensor<2> {
    by_way!([weight.into_dispatch()],
        Cpu([weight]) => cpu::linear::prepack_weight(weight),
        Composed([weight]) => Tensor::from_dispatch(weight),
    )
}

#[derive(Clone, Debug)]
pub struct Linear {
    /// Whether the weight is on a tape.
    pub trained: bool,
    /// The number of samples in the rows if each must get the same bits as alone; else 1.
    pub samples: usize,
}

/// The inputs are `x`, the weight and perhaps a bias.
impl<const N: usize> Operation<N> for Linear {
    /// `x` if the weight is trained, and the weight.
    type Saved = (Option<RawTensor>, RawTensor);

    fn forward(&self, inputs: [RawTensor; N]) -> (RawTensor, Self::Saved) {
        let saved = (self.trained.then(|| inputs[0].clone()), inputs[1].clone());
        let output = by_way!(inputs,
            Cpu(inputs) => {
                cpu::linear::forward(inputs[0].clone(), inputs[1].clone(), inputs.get(2).cloned(), self.samples)
            },
            Cuda(inputs) => cuda::linear::affine(&inputs[0], &inputs[1], inputs.get(2)),
            Composed(inputs) => {
                let [x, weight] = [0, 1].map(|i| Tensor::from_dispatch(inputs[i].clone()));
                let bias = inputs.get(2).cloned().map(Tensor::from_dispatch);
                composed::linear::forward(x, weight, bias).into_dispatch()
            },
        );
        (output, saved)
    }

    const ADDS: bool = cfg!(feature = "cuda");

    fn backward(self, saved: Self::Saved, gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N] {
        self.backward_onto(saved, gradient, wanted, &mut [const { None }; N])
    }

    fn backward_onto(
        self,
        (x, weight): Self::Saved,
        gradient: RawTensor,
        wanted: [bool; N],
        before: &mut [Option<RawTensor>; N],
    ) -> [Option<RawTensor>; N] {
        let mut wanted @ [wants_x, wants_weight, _] = [0, 1, 2].map(|i| wanted.get(i) == Some(&true));
        let sum = before[0].take_if(|_| wants_x).and_then(|onto| {
            by_way!([gradient.clone(), weight.clone(), onto],
                Cuda([gradient, weight, onto]) => Some(cuda::linear::input_gradient(&gradient, &weight, onto)),
                Composed([.., onto]) => {
                    before[0] = Some(onto);
                    None
                },
            )
        });
        wanted[0] &= sum.is_none();
        // A placeholder if `x` was not kept.
        let x = x.filter(|_| wants_weight).unwrap_or_else(|| gradient.clone());
        let gradients = by_way!([gradient, weight, x],
            Cpu(all) => cpu::linear::backward(all, wanted),
            Composed(all) => composed::linear::backward(all.map(Tensor::from_dispatch), wanted),
        );
        let mut gradients = gradients.into_iter();
        let mut gradients = std::array::from_fn(|_| gradients.next().flatten());
        gradients[0] = gradients[0].take().or(sum);
        gradients
    }
}

impl<const N: usize> Activatable<N> for Linear {
    #[cfg(feature = "cuda")]
    fn forward_activated(
        &self,
        kind: Activation,
        inputs: [RawTensor; N],
        kept: bool,
    ) -> (RawTensor, Option<RawTensor>, Self::Saved) {
        match on_gpu(inputs) {
            Ok(inputs) => {
                let [x, weight] = [0, 1].map(|i: usize| &inputs[i]);
                let (output, y) = cuda::linear::affine_activated(kind, x, weight, inputs.get(2), kept);
                let [x, weight] = [x, weight].map(|t| cuda::raw_tensor(t.clone()));
                (output, y, (self.trained.then_some(x), weight))
            }
            Err(inputs) => self.forward_then_activated(kind, inputs),
        }
    }
}
