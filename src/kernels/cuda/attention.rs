//! Attention by cuDNN, if available: the scores are never in memory, and the products run at the speed of the tensor cores.
//! (Through torch an H100 takes 0.40 ms for a block of FLUX at 1024², 650 TFLOP/s, and 1.21 ms for its gradients:
//! `benches/results/h100.md`.)
//!
//! A plan is made for each shape and layout, which takes about a second, and cached. What cuDNN refuses, or fails to run the
//! first time, is computed without it from then on.
//!
//! The gradient of q is summed by atomic additions in f32, in an order that differs from run to run: its last bits differ, and
//! two runs of one seed, or a resumed run and an uninterrupted one, drift apart by rounding. In deterministic mode, cuDNN keeps
//! the gradients of all scores in memory (1 GB for FLUX at 1024²) and sums in order.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Instant,
};

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;

use crate::cuda::paths;

use super::{
    CudaTensor, RawTensor,
    cudnn::{self, Cudnn, Handle, Layout, Sizes, Target, Type},
    dims, empty, raw_tensor,
    ready::{Plans, Ready},
    stream::{ask, is_open},
};

/// What the backward pass needs besides the inputs.
#[derive(Clone, Debug)]
pub struct Saved {
    /// In memory `[B, L, N, K]`.
    output: CudaTensor,
    /// `ln Σ exp(score)` of every query, f32.
    log_sums: CudaTensor,
}

/// The output, stored as `[B, L, N, K]`, and what the backward pass needs of it; `None` if cuDNN cannot compute it.
pub fn forward(inputs: &[CudaTensor; 3]) -> Option<(RawTensor, Saved)> {
    let cudnn = library(inputs)?;
    let [q, k, v] = inputs.clone().map(readable);
    let ([batch, heads, queries, _], like) = (dims::<4>(&q), q.clone());
    let layouts = [layout(&q)?, layout(&k)?, layout(&v)?];
    let sizes = sizes(layouts, None);
    let ready = ready(cudnn, &like, Question { direction: Direction::Forward, sizes })?;
    let output = tokens_first(&like);
    let log_sums = empty(&like, [batch, heads, queries, 1], DType::F32);
    ready.run(&[&q, &k, &v], &[&output, &log_sums]).then(|| (heads_first(output.clone()), Saved { output, log_sums }))
}

/// The gradients of q, k and v from these, the gradient of the output, and what was saved; `None` if cuDNN cannot compute
/// them.
pub fn backward(inputs: [CudaTensor; 4], saved: Saved) -> Option<[RawTensor; 3]> {
    let cudnn = library(&inputs)?;
    let [q, k, v, gradient] = inputs.map(readable);
    let layouts = [layout(&q)?, layout(&k)?, layout(&v)?];
    let sizes = sizes(layouts, layout(&gradient));
    let direction = if paths().deterministic { Direction::BackwardInOrder } else { Direction::Backward };
    let ready = ready(cudnn, &q, Question { direction, sizes })?;
    let gradients = [&q, &k, &v].map(tokens_first);
    let [dq, dk, dv] = gradients.each_ref();
    let done = ready.run(&[&q, &k, &v, &saved.output, &saved.log_sums, &gradient], &[dq, dk, dv]);
    done.then(|| gradients.map(heads_first))
}

/// cuDNN, if it accepts these tensors: all of one 16-bit dtype on a GPU whose stream is open.
fn library<const N: usize>(inputs: &[CudaTensor; N]) -> Option<&'static Cudnn> {
    let first = inputs.first()?;
    let one_type = inputs.iter().all(|tensor| tensor.dtype == first.dtype);
    let wanted = paths().attention && one_type && matches!(first.dtype, DType::F16 | DType::BF16);
    let cudnn = wanted.then(Cudnn::shared)??;
    is_open(first).then_some(cudnn)
}

/// The tensor as cuDNN reads it: contiguous rows, each at a multiple of 16 bytes. Copied only if necessary.
fn readable(tensor: CudaTensor) -> CudaTensor {
    const NUMBERS: usize = 8;
    let axes = tensor.meta.shape().iter().zip(tensor.meta.strides().iter());
    let mut outer: Vec<_> = axes.filter(|(size, _)| **size > 1).map(|(_, stride)| *stride).collect();
    let side_by_side = outer.pop() == Some(1) && tensor.meta.strides().last() == Some(&1);
    let offset = tensor.handle.offset_start.unwrap_or(0);
    match side_by_side
        && offset.is_multiple_of(16)
        && outer.iter().all(|stride| *stride > 0 && stride.is_multiple_of(NUMBERS))
    {
        true => tensor,
        false => into_contiguous(tensor),
    }
}

/// The layout of a [readable] tensor; `None` if its rows cannot be aligned.
fn layout(tensor: &CudaTensor) -> Option<Layout> {
    let shape = dims::<4>(tensor).map(|size| size as i64);
    let [.., width] = shape;
    let dtype = if tensor.dtype == DType::F16 { Type::F16 } else { Type::Bf16 };
    let strides: &[usize] = tensor.meta.strides();
    let mut strides: [i64; 4] = std::array::from_fn(|axis| strides[axis] as i64);
    // The stride of an axis of size 1 has no meaning: always the same value, so that the same plan is used.
    let all = (0..4).map(|axis| shape[axis] * strides[axis]).max().unwrap_or(1);
    for axis in 0..3 {
        if shape[axis] == 1 {
            strides[axis] = all;
        }
    }
    (width % 8 == 0).then_some(Layout { shape, strides, dtype })
}

/// The sizes for which a plan is requested; without a gradient, for the forward pass.
fn sizes([q, k, v]: [Layout; 3], gradient: Option<Layout>) -> Sizes {
    let sizes = Sizes { q, k, v, gradient: q };
    Sizes { gradient: gradient.unwrap_or(sizes.output()), ..sizes }
}

/// Memory `[B, L, N, K]` for a result of the shape of `like`.
fn tokens_first(like: &CudaTensor) -> CudaTensor {
    let [batch, heads, tokens, width] = dims(like);
    empty(like, [batch, tokens, heads, width], like.dtype)
}

/// `[B, L, N, K]` → `[B, N, L, K]`, by its strides.
fn heads_first(tensor: CudaTensor) -> RawTensor {
    Tensor::<4>::from_dispatch(raw_tensor(tensor)).swap_dims(1, 2).into_dispatch()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Forward,
    Backward,
    /// The backward pass, with sums in the same order every time.
    BackwardInOrder,
}

/// What a plan computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    direction: Direction,
    sizes: Sizes,
}

static PLANS: LazyLock<Plans<Question>> = LazyLock::new(Plans::default);

/// The plan for a question.
fn ready(cudnn: &'static Cudnn, like: &CudaTensor, question: Question) -> Option<Arc<Ready>> {
    PLANS.get(like, question, || make(cudnn, like, question))
}

/// For the log.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, sizes } = self;
        write!(f, "attention of {:?} over {:?}, {direction:?}", sizes.q.shape, sizes.k.shape)
    }
}

/// Makes the plan.
fn make(cudnn: &'static Cudnn, like: &CudaTensor, question: Question) -> Result<Arc<Ready>, String> {
    let gpu = like.device.index;
    let (plan, handle) = ask(like, move |stream| {
        let handle = Handle::of(gpu, cudnn, stream.cast())?;
        let start = Instant::now();
        let (target, Question { direction, sizes }) = (Target::Handle(&handle), &question);
        let plan = match direction {
            Direction::Forward => cudnn::forward(cudnn, &target, sizes),
            Direction::Backward => cudnn::backward(cudnn, &target, sizes, false),
            Direction::BackwardInOrder => cudnn::backward(cudnn, &target, sizes, true),
        }?;
        tracing::debug!(
            "{question}: cuDNN plan with a workspace of {:.1} MB, made in {:.1} s",
            plan.workspace() as f64 / 1e6,
            start.elapsed().as_secs_f64()
        );
        Ok((plan, handle))
    })?;
    let workspace = plan.workspace();
    Ok(Ready::new(question.to_string(), workspace, move |tensors, workspace| {
        // SAFETY: the tensors have the sizes that the plan was made for, the workspace has the requested size, the backend holds
        // them until the work is on its stream, and only the backend's thread runs plans.
        unsafe { plan.run(&handle, tensors, workspace) }
    }))
}
