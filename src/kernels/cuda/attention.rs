//! Attention by cuDNN where it is there: the scores are never in memory, and the products run at the speed of the tensor
//! cores. (Through torch an H100 takes 0.40 ms for a block of FLUX at 1024², 650 TFLOP/s, and 1.21 ms for its gradients:
//! `benches/results/h100-first-light.md`.)
//!
//! A plan is made for each shape and layout, which takes about a second, and kept. What cuDNN refuses, or fails to run the
//! first time, goes the other way from then on.
//!
//! The gradient of q is summed by atomic additions in f32, in an order that differs from run to run: its last bits differ,
//! and two trainings of one seed, or one that was resumed and one that was not, drift apart by rounding. Asked to be
//! deterministic, cuDNN keeps the gradients of all scores on the way (1 GB of FLUX at 1024²) and sums in order.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, mpsc},
    time::Instant,
};

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;

use crate::cuda::deterministic_attention;

use super::{
    CudaTensor, Plain,
    cudnn::{self, Cudnn, Handle, Layout, Plan, Sizes, Target, Type},
    dims, empty, plain,
    stream::{ask, enqueue, is_open, workspace},
    takes, tensors,
};

/// What the backward pass needs beside the inputs.
#[derive(Clone, Debug)]
pub struct Saved {
    /// In memory `[B, L, N, K]`.
    output: CudaTensor,
    /// `ln Σ exp(score)` of every query, f32.
    log_sums: CudaTensor,
}

/// The output, in memory `[B, L, N, K]`, and what the backward pass needs of it; none where this way is not to be had.
pub fn forward(inputs: &[Plain; 3]) -> Option<(Plain, Saved)> {
    let cudnn = library(inputs)?;
    let [q, k, v] = tensors(inputs.clone()).map(readable);
    let ([batch, heads, queries, _], like) = (dims::<4>(&q), q.clone());
    let layouts = [layout(&q)?, layout(&k)?, layout(&v)?];
    let sizes = sizes(layouts, None);
    let ready = ready(cudnn, &like, Question { direction: Direction::Forward, sizes })?;
    let output = tokens_first(&like);
    let log_sums = empty(&like, [batch, heads, queries, 1], DType::F32);
    ready.run(&[&q, &k, &v], &[&output, &log_sums]).then(|| (heads_first(output.clone()), Saved { output, log_sums }))
}

/// The gradients of q, k and v from these, the gradient of the output, and what was saved; none where this way is not to
/// be had.
pub fn backward(inputs: &[Plain; 4], saved: Saved) -> Option<[Plain; 3]> {
    let cudnn = library(inputs)?;
    let [q, k, v, gradient] = tensors(inputs.clone()).map(readable);
    let layouts = [layout(&q)?, layout(&k)?, layout(&v)?];
    let sizes = sizes(layouts, layout(&gradient));
    let direction = if deterministic_attention() { Direction::BackwardInOrder } else { Direction::Backward };
    let ready = ready(cudnn, &q, Question { direction, sizes })?;
    let gradients = [&q, &k, &v].map(tokens_first);
    let [dq, dk, dv] = gradients.each_ref();
    let done = ready.run(&[&q, &k, &v, &saved.output, &saved.log_sums, &gradient], &[dq, dk, dv]);
    done.then(|| gradients.map(heads_first))
}

/// cuDNN, if it takes such tensors: all of one 16-bit type on a GPU whose stream is open.
fn library<const N: usize>(inputs: &[Plain; N]) -> Option<&'static Cudnn> {
    if !takes(inputs) {
        return None;
    }
    let inputs = tensors(inputs.clone());
    let first = inputs.first()?;
    let one_type = inputs.iter().all(|tensor| tensor.dtype == first.dtype);
    let cudnn = (one_type && matches!(first.dtype, DType::F16 | DType::BF16)).then(Cudnn::shared)??;
    is_open(first).then_some(cudnn)
}

/// The tensor as cuDNN reads it: the numbers of each row side by side, each row at a multiple of 16 bytes. Copied only if it
/// is not so.
fn readable(tensor: CudaTensor) -> CudaTensor {
    const NUMBERS: usize = 8;
    let axes = tensor.meta.shape().iter().zip(tensor.meta.strides().iter());
    let mut outer: Vec<_> = axes.filter(|(size, _)| **size > 1).map(|(_, stride)| *stride).collect();
    let side_by_side = outer.pop() == Some(1) && tensor.meta.strides().last() == Some(&1);
    let offset = tensor.handle.offset_start.unwrap_or(0);
    match side_by_side && offset % 16 == 0 && outer.iter().all(|stride| *stride > 0 && stride % NUMBERS == 0) {
        true => tensor,
        false => into_contiguous(tensor),
    }
}

/// How a [readable] tensor lies; none if its rows cannot lie so.
fn layout(tensor: &CudaTensor) -> Option<Layout> {
    let shape = dims::<4>(tensor).map(|size| size as i64);
    let [.., width] = shape;
    let dtype = if tensor.dtype == DType::F16 { Type::F16 } else { Type::Bf16 };
    let strides: &[usize] = tensor.meta.strides();
    let mut strides: [i64; 4] = std::array::from_fn(|axis| strides[axis] as i64);
    // The stride of an axis of 1 means nothing: always the same one, so that the same plan serves.
    let all = (0..4).map(|axis| shape[axis] * strides[axis]).max().unwrap_or(1);
    for axis in 0..3 {
        if shape[axis] == 1 {
            strides[axis] = all;
        }
    }
    (width % 8 == 0).then_some(Layout { shape, strides, dtype })
}

/// The question for a plan: without a gradient, that of the forward pass.
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
fn heads_first(tensor: CudaTensor) -> Plain {
    Tensor::<4>::from_dispatch(plain(tensor)).swap_dims(1, 2).into_dispatch()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Forward,
    Backward,
    /// Its sums in the same order every time.
    BackwardInOrder,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    direction: Direction,
    sizes: Sizes,
}

/// The answers, for each GPU by its number. None: refused.
static PLANS: LazyLock<Mutex<HashMap<(usize, Question), Option<Arc<Ready>>>>> = LazyLock::new(Mutex::default);

/// The plan that answers the question, made at the first time.
fn ready(cudnn: &'static Cudnn, like: &CudaTensor, question: Question) -> Option<Arc<Ready>> {
    let mut plans = PLANS.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || match Ready::new(cudnn, like, question) {
        Ok(ready) => Some(Arc::new(ready)),
        Err(problem) => {
            refused(&question, &problem);
            None
        }
    };
    plans.entry((like.device.index, question)).or_insert_with(make).clone()
}

/// Said once: the answer is kept.
fn refused(Question { direction, sizes }: &Question, problem: &str) {
    tracing::debug!(
        "attention of {:?} over {:?}, {direction:?}: not by cuDNN, which says: {problem}",
        sizes.q.shape,
        sizes.k.shape
    );
}

/// A plan with what runs it.
struct Ready {
    question: Question,
    plan: Plan,
    handle: Arc<Handle>,
    /// Whether it ran the first time.
    runs: OnceLock<bool>,
}

impl Ready {
    fn new(cudnn: &'static Cudnn, like: &CudaTensor, question: Question) -> Result<Self, String> {
        let gpu = like.device.index;
        let (plan, handle) = ask(like, move |stream| {
            static HANDLES: LazyLock<Mutex<HashMap<usize, Arc<Handle>>>> = LazyLock::new(Mutex::default);
            let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
            let handle = match handles.get(&gpu) {
                Some(handle) => handle.clone(),
                None => {
                    let handle = Arc::new(Handle::new(cudnn, stream.cast())?);
                    handles.insert(gpu, handle.clone());
                    handle
                }
            };
            let start = Instant::now();
            let (target, Question { direction, sizes }) = (Target::Handle(&handle), &question);
            let plan = match direction {
                Direction::Forward => cudnn::forward(cudnn, &target, sizes),
                Direction::Backward => cudnn::backward(cudnn, &target, sizes, false),
                Direction::BackwardInOrder => cudnn::backward(cudnn, &target, sizes, true),
            }?;
            tracing::debug!(
                "attention of {:?} over {:?}, {direction:?}: a plan of cuDNN with {:.1} MB to work in, made in {:.1} s",
                sizes.q.shape,
                sizes.k.shape,
                plan.workspace() as f64 / 1e6,
                start.elapsed().as_secs_f64()
            );
            Ok((plan, handle))
        })?;
        Ok(Self { question, plan, handle, runs: OnceLock::new() })
    }

    /// Runs the plan, and says whether its outputs are to be used. The first run is waited for until it is on the stream;
    /// a plan that fails there is not tried again.
    fn run(self: &Arc<Self>, inputs: &[&CudaTensor], outputs: &[&CudaTensor]) -> bool {
        let like = inputs[0];
        let work = workspace(like, self.plan.workspace().max(1));
        let outputs: Vec<&CudaTensor> = outputs.iter().copied().chain([&work]).collect();
        let run = {
            let ready = self.clone();
            move |addresses: &[u64]| {
                let (workspace, tensors) = addresses.split_last().ok_or("no addresses")?;
                // SAFETY: the tensors are of the sizes that the plan was made for, the workspace of the size it asked for, the
                // backend holds them until the work is on its stream, and no other thread than the backend's runs plans.
                unsafe { ready.plan.run(&ready.handle, tensors, *workspace) }
            }
        };
        if let Some(&runs) = self.runs.get() {
            if runs {
                enqueue(inputs, &outputs, move |addresses, _| run(addresses));
            }
            return runs;
        }
        let (report, done) = mpsc::channel();
        enqueue(inputs, &outputs, move |addresses, _| {
            let _ = report.send(run(addresses));
            Ok(())
        });
        // All before it is on the stream when this is answered.
        let done = ask(like, |_| Ok(())).and_then(|()| done.recv().unwrap_or_else(|e| Err(e.to_string())));
        if let Err(problem) = &done {
            refused(&self.question, problem);
        }
        *self.runs.get_or_init(|| done.is_ok())
    }
}
