//! Linear layers and their adapters, with as few kernels as possible: where cuBLASLt computes a product, additions and scales are
//! fused into it.

use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::kernel::cast;

use super::{
    CudaTensor, RawTensor, activation,
    cast::cast_all,
    matmul,
    product::{Product, gelu, product},
    raw_tensor, tensors,
};
use crate::kernels::formulas::Activation;

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

/// An activation of [`affine`], and the result before it if it is to be `kept` or costs nothing: in one launch if cuBLASLt can.
pub fn affine_activated(
    kind: Activation,
    x: &CudaTensor,
    weight: &CudaTensor,
    bias: Option<&CudaTensor>,
    kept: bool,
) -> (RawTensor, Option<RawTensor>) {
    activated(kind, Product { bias, ..Product::new(x, &turned(weight)) }, kept)
        .unwrap_or_else(|| then_activated(kind, affine(x, weight, bias)))
}

/// An activation of a product, and the product if it is to be `kept`, if cuBLASLt can in one launch.
fn activated(kind: Activation, product: Product, kept: bool) -> Option<(RawTensor, Option<RawTensor>)> {
    let (output, result) = match kind {
        Activation::GeluTanh => gelu(product, kept)?,
        Activation::Silu => return None,
    };
    Some((raw_tensor(output), result.map(raw_tensor)))
}

fn then_activated(kind: Activation, result: RawTensor) -> (RawTensor, Option<RawTensor>) {
    let [x] = tensors([result.clone()]);
    (activation::forward(kind, x), Some(result))
}

/// `before + g·W` of the gradient `g` `[M, out]` of an output, `W` `[out, in]`, and the gradient that the input `[M, in]` already has from
/// elsewhere, such as from the layer's adapter: one pass less over `before` than adding it afterwards.
pub fn input_gradient(g: &CudaTensor, weight: &CudaTensor, before: CudaTensor) -> RawTensor {
    if let Some(sum) = product(Product { onto: Some(&before), ..Product::new(g, weight) }) {
        return raw_tensor(sum);
    }
    let gradient = Tensor::<2>::from_dispatch(matmul::product([g.clone(), weight.clone()]));
    (gradient + Tensor::from_dispatch(raw_tensor(before))).into_dispatch()
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

/// What [`low_rank`] and its [gradients](low_rank_gradients) need: `x`, `x·Aᵀ`, and `A` and `B` in the dtype of `x`.
fn narrowed([x, a, b]: [&CudaTensor; 3]) -> [CudaTensor; 4] {
    let [a, b] = cast_all([a, b], x.dtype);
    let u = scaled(x, &turned(&a), 1.0, x.dtype);
    [x.clone(), u, a, b]
}

/// `y + scale·(x·Aᵀ)·Bᵀ` of `y` `[M, out]`, `x` `[M, in]`, and in f32 `A` `[rank, in]` and `B` `[out, rank]`; and what the
/// [gradients](low_rank_gradients) need: `x`, `x·Aᵀ`, and `A` and `B` in the type of `x`.
pub fn low_rank([y, x, a, b]: [CudaTensor; 4], scale: f64) -> (RawTensor, [RawTensor; 4]) {
    let saved @ [_, u, _, b] = &narrowed([&x, &a, &b]);
    (widened(y, u, b, scale), saved.clone().map(raw_tensor))
}

/// An activation of [`low_rank`], the result before it if it is to be `kept` or costs nothing, and what the
/// [gradients](low_rank_gradients) need: in one launch less if cuBLASLt can.
pub fn low_rank_activated(
    kind: Activation,
    [y, x, a, b]: [CudaTensor; 4],
    scale: f64,
    kept: bool,
) -> (RawTensor, Option<RawTensor>, [RawTensor; 4]) {
    let saved @ [_, u, _, b] = &narrowed([&x, &a, &b]);
    let together = {
        let turned = turned(b);
        activated(kind, Product { scale: scale as f32, onto: Some(&y), ..Product::new(u, &turned) }, kept)
    };
    let (output, result) = together.unwrap_or_else(|| then_activated(kind, widened(y, u, b, scale)));
    (output, result, saved.clone().map(raw_tensor))
}

/// `y + scale·u·Bᵀ` of `u` `[M, rank]` and `B` `[out, rank]`.
fn widened(y: CudaTensor, u: &CudaTensor, b: &CudaTensor, scale: f64) -> RawTensor {
    let turned = turned(b);
    let added = product(Product { scale: scale as f32, onto: Some(&y), ..Product::new(u, &turned) });
    added.map(raw_tensor).unwrap_or_else(|| {
        // The scale is applied to the smallest factor.
        let change = matmul::product([u.clone(), times(turned, scale)]);
        (Tensor::<2>::from_dispatch(raw_tensor(y)) + Tensor::from_dispatch(change)).into_dispatch()
    })
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
