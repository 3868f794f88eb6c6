//! Linear layers and their adapters, with as few kernels as possible: where cuBLASLt computes a product, additions and scales are
//! fused into it.

use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::kernel::cast;

use super::{
    CudaTensor, RawTensor, matmul,
    product::{Product, product},
    raw_tensor, tensors,
};

/// The transpose `[n, m]` of a tensor `[m, n]`, as a view.
fn turned(tensor: &CudaTensor) -> CudaTensor {
    let [turned] = tensors([Tensor::<2>::from_dispatch(raw_tensor(tensor.clone())).transpose().into_dispatch()]);
    turned
}

/// `x·Wᵀ + b` of `x` `[M, in]`, `W` `[out, in]` and perhaps a bias `[out]`.
pub fn affine(x: &CudaTensor, weight: &CudaTensor, bias: Option<&CudaTensor>) -> RawTensor {
    let weight = turned(weight);
    if let Some(y) = product(Product { bias, ..Product::new(x, &weight) }) {
        return raw_tensor(y);
    }
    let y = matmul::product([x.clone(), weight]);
    match bias {
        None => y,
        Some(bias) => {
            let bias = Tensor::<1>::from_dispatch(raw_tensor(bias.clone())).unsqueeze();
            (Tensor::<2>::from_dispatch(y) + bias).into_dispatch()
        }
    }
}

/// `scale·a·b` for two matrices, in `dtype`: their own or f32.
fn scaled(a: &CudaTensor, b: &CudaTensor, scale: f64, dtype: DType) -> CudaTensor {
    let whole = Product { scale: scale as f32, dtype, ..Product::new(a, b) };
    product(whole).unwrap_or_else(|| {
        let [y] = tensors([matmul::product([a.clone(), b.clone()])]);
        times(cast(y, dtype), scale)
    })
}

fn times(tensor: CudaTensor, scale: f64) -> CudaTensor {
    if scale == 1.0 {
        return tensor;
    }
    let [scaled] = tensors([(Tensor::<2>::from_dispatch(raw_tensor(tensor)) * scale).into_dispatch()]);
    scaled
}

/// `y + scale·(x·Aᵀ)·Bᵀ` of `y` `[M, out]`, `x` `[M, in]`, and in f32 `A` `[rank, in]` and `B` `[out, rank]`; and what the
/// [gradients](low_rank_gradients) need: `x`, `x·Aᵀ`, and `A` and `B` in the type of `x`.
pub fn low_rank([y, x, a, b]: [CudaTensor; 4], scale: f64) -> (RawTensor, [RawTensor; 4]) {
    let [a, b] = [a, b].map(|factor| cast(factor, x.dtype));
    let u = scaled(&x, &turned(&a), 1.0, x.dtype);
    let turned = turned(&b);
    let added = product(Product { scale: scale as f32, onto: Some(&y), ..Product::new(&u, &turned) });
    let added = added.map(raw_tensor).unwrap_or_else(|| {
        // The scale is applied to the smallest factor.
        let change = matmul::product([u.clone(), times(turned.clone(), scale)]);
        (Tensor::<2>::from_dispatch(raw_tensor(y)) + Tensor::from_dispatch(change)).into_dispatch()
    });
    (added, [x, u, a, b].map(raw_tensor))
}

/// The gradients of `x`, `A` and `B`, as far as they are `wanted`, from that of the output and what [`low_rank`] left.
pub fn low_rank_gradients(
    [g, x, u, a, b]: [CudaTensor; 5],
    scale: f64,
    [wants_x, wants_a, wants_b]: [bool; 3],
) -> [Option<RawTensor>; 3] {
    let du = (wants_x || wants_a).then(|| scaled(&g, &b, scale, g.dtype));
    let of = |du: &Option<CudaTensor>| du.clone().expect("computed for the gradients that need it");
    let master = FloatDType::F32.into();
    [
        wants_x.then(|| raw_tensor(scaled(&of(&du), &a, 1.0, g.dtype))),
        wants_a.then(|| raw_tensor(scaled(&turned(&of(&du)), &x, 1.0, master))),
        wants_b.then(|| raw_tensor(scaled(&turned(&g), &u, scale, master))),
    ]
}
