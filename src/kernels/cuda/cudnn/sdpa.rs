//! Attention as graphs: `softmax(q·kᵀ·scale)·v` with the log-sums of its scores, and its gradients from these.

use super::{
    descriptor::{Attribute, Kind},
    graph::{Graph, Layout, Plan, Target, Type},
    library::Cudnn,
};

/// The layouts of the tensors: `q`, `output`, `gradient` `[B, N, L, K]`, `k` and `v` `[B, N, S, K]`, all of one 16-bit dtype.
/// The gradients of `q`, `k` and `v` are laid out like `output`: tokens before heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    pub q: Layout,
    pub k: Layout,
    pub v: Layout,
    /// The layout of the output's gradient.
    pub gradient: Layout,
}

impl Sizes {
    /// A layout with the shape of `like`, and tokens before heads.
    fn tokens_first(like: Layout) -> Layout {
        let [_, heads, tokens, width] = like.shape;
        Layout { strides: [tokens * heads * width, width, heads * width, 1], ..like }
    }

    /// The layout of the output, and of the gradient of q.
    pub fn output(&self) -> Layout {
        Self::tokens_first(self.q)
    }

    /// `[B, N, L, 1]`.
    fn log_sums(&self) -> Layout {
        let [batch, heads, queries, _] = self.q.shape;
        Layout::contiguous([batch, heads, queries, 1], Type::F32)
    }

    /// `1/√K`.
    fn scale(&self) -> f32 {
        let [.., width] = self.q.shape;
        (1.0 / (width as f64).sqrt()) as f32
    }
}

/// The plan for `(q, k, v, output, log_sums)`; the last two are written.
///
/// # Errors
/// cuDNN has none.
pub fn forward(library: &'static Cudnn, target: &Target, sizes: &Sizes) -> Result<Plan, String> {
    let mut graph = Graph::new(library);
    let operands = [
        (Attribute::ForwardQ, graph.tensor(sizes.q)?),
        (Attribute::ForwardK, graph.tensor(sizes.k)?),
        (Attribute::ForwardV, graph.tensor(sizes.v)?),
        (Attribute::ForwardO, graph.tensor(sizes.output())?),
        (Attribute::ForwardLogSums, graph.tensor(sizes.log_sums())?),
        (Attribute::ForwardScale, graph.value(sizes.scale())?),
    ];
    graph.operation(Kind::OperationSdpaForward, &operands)?;
    graph.plan(target)
}

/// The plan for `(q, k, v, output, log_sums, gradient, dq, dk, dv)`; the last three are written.
///
/// Unless it is `deterministic`, `dq` is summed in an order that differs from run to run, and so do its last bits. If it is, the
/// gradients of all scores are temporarily in memory.
///
/// # Errors
/// cuDNN has none.
pub fn backward(library: &'static Cudnn, target: &Target, sizes: &Sizes, deterministic: bool) -> Result<Plan, String> {
    if !deterministic && let Ok(plan) = at_once(library, target, sizes) {
        return Ok(plan);
    }
    composed(library, target, sizes, deterministic)
}

/// As one operation, which the newest versions of cuDNN have for some GPUs.
fn at_once(library: &'static Cudnn, target: &Target, sizes: &Sizes) -> Result<Plan, String> {
    let mut graph = Graph::new(library);
    let operands = [
        (Attribute::BackwardQ, graph.tensor(sizes.q)?),
        (Attribute::BackwardK, graph.tensor(sizes.k)?),
        (Attribute::BackwardV, graph.tensor(sizes.v)?),
        (Attribute::BackwardO, graph.tensor(sizes.output())?),
        (Attribute::BackwardLogSums, graph.tensor(sizes.log_sums())?),
        (Attribute::BackwardDo, graph.tensor(sizes.gradient)?),
        (Attribute::BackwardDq, graph.tensor(sizes.output())?),
        (Attribute::BackwardDk, graph.tensor(Sizes::tokens_first(sizes.k))?),
        (Attribute::BackwardDv, graph.tensor(Sizes::tokens_first(sizes.v))?),
        (Attribute::BackwardScale, graph.value(sizes.scale())?),
    ];
    graph.operation(Kind::OperationSdpaBackward, &operands)?;
    graph.plan(target)
}

/// Members of `cudnnPointwiseMode_t`.
const TIMES: i32 = 1;
const MINUS: i32 = 9;
const EXP: i32 = 13;
const COPY: i32 = 21;

/// As a combination of operations that cuDNN recognizes: with `p = exp(q·kᵀ·scale - log_sums)`, `dv = pᵀ·g`,
/// `ds = p∘(g·vᵀ - Σ g∘output)·scale`, `dk = dsᵀ·q`, `dq = ds·k`.
fn composed(library: &'static Cudnn, target: &Target, sizes: &Sizes, deterministic: bool) -> Result<Plan, String> {
    let ([batch, heads, queries, width], [_, _, keys, _]) = (sizes.q.shape, sizes.k.shape);
    let dtype = sizes.q.dtype;
    let scores = Layout::contiguous([batch, heads, queries, keys], Type::F32);
    // The same values with keys as rows, as the products over the queries need them.
    let by_keys = Layout { dtype, ..scores }.transposed();
    let rows = Layout::contiguous([batch, heads, queries, width], Type::F32);

    let mut graph = Graph::new(library);
    let q = graph.tensor(sizes.q)?;
    let kt = graph.tensor(sizes.k.transposed())?;
    let vt = graph.tensor(sizes.v.transposed())?;
    let output = graph.tensor(sizes.output())?;
    let log_sums = graph.tensor(sizes.log_sums())?;
    let g = graph.tensor(sizes.gradient)?;
    let dq = graph.tensor(sizes.output())?;
    let dk = graph.tensor(Sizes::tokens_first(sizes.k))?;
    let dv = graph.tensor(Sizes::tokens_first(sizes.v))?;
    let scale = graph.value(sizes.scale())?;

    // The level of each row, Σ g∘output. cuDNN recognizes the graph only with a factor there, which is for dropout.
    let (products, level) = (graph.between(rows)?, graph.between(sizes.log_sums())?);
    let (one, kept) = (graph.value(1.0)?, graph.scratch(sizes.log_sums())?);
    graph.pointwise(TIMES, g, Some(output), products)?;
    graph.sum(products, level)?;
    graph.pointwise(TIMES, level, Some(one), kept)?;

    // Recomputes the probabilities, and dv.
    let [product, scaled, shifted, p] =
        [graph.between(scores)?, graph.between(scores)?, graph.between(scores)?, graph.between(scores)?];
    graph.product(q, kt, product)?;
    graph.pointwise(TIMES, product, Some(scale), scaled)?;
    graph.pointwise(MINUS, scaled, Some(log_sums), shifted)?;
    graph.pointwise(EXP, shifted, None, p)?;
    let pt = graph.between(by_keys)?;
    graph.reshape(p, pt)?;
    graph.product(pt, g, dv)?;

    // The gradients of the scores, and dk.
    let [dp, above, slopes, ds] =
        [graph.between(scores)?, graph.between(scores)?, graph.between(scores)?, graph.between(scores)?];
    graph.product(g, vt, dp)?;
    graph.pointwise(MINUS, dp, Some(kept), above)?;
    graph.pointwise(TIMES, above, Some(p), slopes)?;
    graph.pointwise(TIMES, slopes, Some(scale), ds)?;
    let dst = graph.between(by_keys)?;
    graph.reshape(ds, dst)?;
    graph.product(dst, q, dk)?;

    let k = graph.between(Layout { dtype: Type::F32, ..sizes.k })?;
    graph.reshape(kt, k)?;
    if deterministic {
        graph.product(ds, k, dq)?;
    } else {
        // In f32, because all blocks of keys add to it.
        let sum = graph.scratch(rows)?;
        graph.product(ds, k, sum)?;
        graph.pointwise(COPY, sum, None, dq)?;
    }
    graph.plan(target)
}
