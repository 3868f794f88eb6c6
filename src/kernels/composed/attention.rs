//! Attention as matrix products over a few heads at a time, on any backend and dtype.
//!
//! On a GPU the scores go through memory, which costs as much as the products: for FLUX at 1024² (24 heads, 4608 tokens)
//! 4 GB per block forward and 9 GB backward, 1 and 2.2 ms on an H200, besides 0.26 and 0.65 TFLOP. Burn's flash attention
//! avoids the traffic but is not used: for every 16 keys it moves each accumulator through shared memory between barriers
//! of all its threads, it rounds f32 to f16, and it has no backward pass.

use burn::tensor::{FloatDType, Tensor, activation};

use crate::kernels::{dispatch::by_way, even_parts, matmul, operation::RawTensor};

/// The maximum number of scores that exist at a time, unless one head has more: 0.5 GiB in f16, twice that in the backward
/// pass. Large enough for the narrow products to fill a GPU (at 1024² FLUX has 21 million per head).
pub const AT_ONCE: usize = 1 << 28;

/// The minimum number of queries of a head in one product. With fewer, a matrix product may sum in another order.
const FEWEST_QUERIES: usize = 128;

/// The output, stored as `[B, L, N, K]`. A head with more than `at_once` scores is also split by queries.
pub fn forward(inputs: [RawTensor; 3], at_once: usize) -> RawTensor {
    let [output] = by_heads(inputs.map(as_gemm_operand), at_once, |[q, k, v]| {
        let ([batch, heads, queries, _], [_, _, keys, _]) = (q.dims(), k.dims());
        let some = |q| matmul(probabilities([q, k.clone()]), v.clone());
        let most = at_once / (batch * heads * keys).max(1);
        match even_parts(queries, most.max(1), FEWEST_QUERIES) {
            parts if parts.len() > 1 => {
                let each = parts.into_iter().map(|part| some(q.clone().narrow(2, part.start, part.len())));
                [Tensor::cat(each.collect(), 2)]
            }
            _ => [some(q)],
        }
    });
    output.into_dispatch()
}

/// The gradients of q, k and v, from these and the gradient of the output: with `p` the softmax of the scores and
/// `dp = g·vᵀ`, `ds = p∘(dp - Σ p∘dp)/√K`, `dq = ds·k`, `dk = dsᵀ·q`, `dv = pᵀ·g`.
pub fn backward(inputs: [RawTensor; 4], at_once: usize) -> [RawTensor; 3] {
    let gradients = by_heads(inputs.map(as_gemm_operand), at_once, |[q, k, v, g]| {
        let [p, ds] = slopes([&q, &k, &v, &g].map(Clone::clone));
        let dv = matmul(p.transpose(), g);
        [matmul(ds.clone(), k), matmul(ds.transpose(), q), dv]
    });
    gradients.map(Tensor::into_dispatch)
}

/// Applies `f` to a few heads of the inputs at a time. In the outputs the heads of each token are adjacent: the model joins
/// them next, which is then free.
fn by_heads<const I: usize, const O: usize>(
    inputs: [Tensor<4>; I],
    at_once: usize,
    f: impl Fn([Tensor<4>; I]) -> [Tensor<4>; O],
) -> [Tensor<4>; O] {
    let ([batch, heads, queries, _], [_, _, keys, _]) = (inputs[0].dims(), inputs[1].dims());
    let most = (at_once / (batch * queries * keys).max(1)).clamp(1, heads);
    // Equal parts, so that there is no small remainder.
    let each = heads.div_ceil(heads.div_ceil(most));
    let mut parts: [Vec<Tensor<4>>; O] = std::array::from_fn(|_| Vec::new());
    for first in (0..heads).step_by(each) {
        let some = inputs.each_ref().map(|t| t.clone().narrow(1, first, each.min(heads - first)));
        for (parts, output) in parts.iter_mut().zip(f(some)) {
            parts.push(output.swap_dims(1, 2));
        }
    }
    parts.map(|parts| Tensor::cat(parts, 2).swap_dims(1, 2))
}

/// The tensor in a memory layout that the products of each part can use without a copy.
fn as_gemm_operand(tensor: RawTensor) -> Tensor<4> {
    let tensor = by_way!([tensor],
        Cuda([tensor]) => cuda::softmax::contiguous_rows(tensor),
        Composed([tensor]) => tensor,
    );
    Tensor::from_dispatch(tensor)
}

/// `softmax(q·kᵀ/√K)`, `[B, N, L, S]`, computed in f32.
fn probabilities(inputs: [Tensor<4>; 2]) -> Tensor<4> {
    by_way!(inputs.map(Tensor::into_dispatch),
        Cuda(inputs) => Tensor::from_dispatch(cuda::softmax::probabilities(inputs)),
        Composed(inputs) => {
            let [q, k] = inputs.map(Tensor::from_dispatch);
            let dtype: FloatDType = q.dtype().into();
            exact_probabilities(q, k).cast(dtype)
        },
    )
}

/// The probabilities, and the gradient of `q·kᵀ` from the gradient `g` of the output.
fn slopes(inputs: [Tensor<4>; 4]) -> [Tensor<4>; 2] {
    by_way!(inputs.map(Tensor::into_dispatch),
        Cuda(inputs) => cuda::softmax::slopes(inputs).map(Tensor::from_dispatch),
        Composed(inputs) => {
            let [q, k, v, g] = inputs.map(Tensor::<4>::from_dispatch);
            let dtype: FloatDType = q.dtype().into();
            let scale = scale(&q);
            let p = exact_probabilities(q, k);
            let dp = matmul(g, v.transpose()).cast(FloatDType::F32);
            let level = (p.clone() * dp.clone()).sum_dim(3);
            let ds = p.clone() * (dp - level) * scale;
            [p, ds].map(|t| t.cast(dtype))
        },
    )
}

/// In f32, including the scores: rounding a score of 20 to bf16 would change `p` by a few percent.
fn exact_probabilities(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    let scale = scale(&q);
    let [q, k] = [q, k].map(|t| t.cast(FloatDType::F32));
    activation::softmax(matmul(q, k.transpose()) * scale, 3)
}

/// `1/√K`.
fn scale(q: &Tensor<4>) -> f64 {
    let [.., width] = q.dims();
    1.0 / (width as f64).sqrt()
}
