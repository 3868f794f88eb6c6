//! LoRA adapters applied to the outputs of their layers.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::kernels::{formulas::Factors, matmul, operation::RawTensor};

/// `y + scale·(x·Aᵀ)·Bᵀ` for `y` `[M, out]`, `x` `[M, in]`, and `A` `[rank, in]` and `B` `[out, rank]` in f32; and what the
/// [backward pass](backward) needs: `x`, `x·Aᵀ`, and `A` and `scale·B` in the dtype of `x`.
pub fn forward([y, x, a, b]: [Tensor<2>; 4], scale: f64) -> (RawTensor, [RawTensor; 4]) {
    let dtype: FloatDType = x.dtype().into();
    // The scale is applied to the smallest factor.
    let [a, b] = [a, scaled(b, scale)].map(|t| t.cast(dtype));
    let u = matmul(x.clone(), a.clone().transpose());
    let y = y + matmul(u.clone(), b.clone().transpose());
    (y.into_dispatch(), [x, u, a, b].map(Tensor::into_dispatch))
}

/// The `wanted` gradients of `x`, `A` and `B`, from that of the output and what [`forward`] saved.
pub fn backward(
    [g, x, u, a, b]: [Tensor<2>; 5],
    scale: f64,
    [wants_x, wants_a, wants_b]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let du = (wants_x || wants_a).then(|| matmul(g.clone(), b));
    let of = |du: &Option<Tensor<2>>| du.clone().expect("computed for those who want it");
    let factor = |t: Tensor<2>| t.cast(FloatDType::F32);
    [
        wants_x.then(|| matmul(of(&du), a).into_dispatch()),
        wants_a.then(|| factor(matmul(of(&du).transpose(), x)).into_dispatch()),
        wants_b.then(|| scaled(factor(matmul(g.transpose(), u)), scale).into_dispatch()),
    ]
}

fn scaled(t: Tensor<2>, scale: f64) -> Tensor<2> {
    if scale == 1.0 { t } else { t * scale }
}

/// `y + Σ scale·(x·Aᵀ)·Bᵀ` with separate factors for each of `samples` samples, in `each`, as one product of all samples.
pub fn by_sample([y, x]: [Tensor<2>; 2], samples: usize, each: &[Vec<Factors<'_>>]) -> Tensor<2> {
    let of = |sample: usize| each[sample % each.len()].as_slice();
    let ([_, inputs], [_, outputs]) = (x.dims(), y.dims());
    let (dtype, device): (FloatDType, _) = (x.dtype().into(), x.device());
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (&device, DType::F32));
    // All factors of a sample are joined, and padded to the largest rank.
    let rank = |factors: &[Factors]| factors.iter().map(|f| f.a.dims()[0]).sum::<usize>();
    let most = (0..samples).map(|sample| rank(of(sample))).max().unwrap_or(0);
    if most == 0 {
        return y;
    }
    let padded = |sample: usize| {
        let missing = most - rank(of(sample));
        let a = of(sample).iter().map(|f| f.a.clone()).chain((missing > 0).then(|| zeros([missing, inputs])));
        let b = of(sample).iter().map(|f| f.b.clone() * f.scale);
        let b = b.chain((missing > 0).then(|| zeros([outputs, missing])));
        [Tensor::cat(a.collect(), 0).cast(dtype), Tensor::cat(b.collect(), 1).cast(dtype)]
    };
    let (a, b): (Vec<_>, Vec<_>) = (0..samples).map(|sample| padded(sample).into()).unzip();
    let [a, b] = [a, b].map(|all| Tensor::stack::<3>(all, 0));
    let rows = x.dims()[0] / samples;
    let u = matmul(x.reshape([samples, rows, inputs]), a.transpose());
    y + matmul(u, b.transpose()).reshape([samples * rows, outputs])
}
