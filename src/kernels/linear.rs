//! Matrix products with weights as stored in checkpoints, `[out, in]`.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};

/// `x·Wᵀ + b`.
///
/// `x` `[M, in]`, `weight` `[out, in]`, `bias` `[out]` → `[M, out]`. All inputs on a tape get gradients; `x` is kept only for
/// that of the weight.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    linear_by_sample(x, weight, bias, 1)
}

/// [`linear`] of `samples` samples with equally many rows of `x`: on the CPU in f32 each sample gets the same bits as alone.
pub fn linear_by_sample(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, samples: usize) -> Tensor<2> {
    assert_one_dtype("a linear layer", &[x.dtype(), weight.dtype(), bias.as_ref().map_or(x.dtype(), Tensor::dtype)]);
    let operation = Linear { trained: weight.device().is_autodiff(), samples };
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    match bias {
        Some(bias) => apply(operation, [x, weight, bias.into_dispatch()]),
        None => apply(operation, [x, weight]),
    }
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

    fn backward(self, (x, weight): Self::Saved, gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N] {
        let wanted @ [_, wants_weight, _] = [0, 1, 2].map(|i| wanted.get(i) == Some(&true));
        // A placeholder if `x` was not kept.
        let x = x.filter(|_| wants_weight).unwrap_or_else(|| gradient.clone());
        let gradients = by_way!([gradient, weight, x],
            Cpu(all) => cpu::linear::backward(all, wanted),
            Composed(all) => composed::linear::backward(all.map(Tensor::from_dispatch), wanted),
        );
        let mut gradients = gradients.into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
    }
}
