//! Products of tensors by cuBLASLt in their own layouts: nothing is copied to be transposed.
//!
//! The library is column-major. It sees a row-major tensor as its transpose, so it is asked for `outputᵀ = bᵀ·aᵀ`, which is the
//! row-major output.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;

use super::{
    CudaTensor,
    cublaslt::{self, Addresses, Factor, Gelu, Task, WORKSPACE},
    empty, stream,
};
use crate::cuda::{Library, library, paths};

/// `scale·a·b + onto + bias` over the last two axes, the others broadcasting.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[…, m, k]`.
    pub a: &'a CudaTensor,
    /// `[…, k, n]`, in the dtype of `a`.
    pub b: &'a CudaTensor,
    pub scale: f32,
    /// `[m, n]`, in the dtype of the output, which reuses its memory if nothing else holds it; the caller then drops it.
    pub onto: Option<&'a CudaTensor>,
    /// `[n]`, in the dtype of the output.
    pub bias: Option<&'a CudaTensor>,
    /// The dtype of the output: that of `a`, or f32.
    pub dtype: DType,
}

impl<'a> Product<'a> {
    /// `a·b` in their own dtype.
    pub(super) fn new(a: &'a CudaTensor, b: &'a CudaTensor) -> Self {
        Self { a, b, scale: 1.0, onto: None, bias: None, dtype: a.dtype }
    }
}

/// The product, if the library is available and accepts it.
pub(super) fn product(product: Product) -> Option<CudaTensor> {
    run(product, None).map(|(product, _)| product)
}

/// The tanh form of GELU of a product of two matrices, and the product itself if it is to be `kept`: in one launch, if the library is
/// available and accepts it.
pub(super) fn gelu(product: Product, kept: bool) -> Option<(CudaTensor, Option<CudaTensor>)> {
    // What cuBLASLt demands of the rows of an auxiliary output.
    columns(product.b)
        .is_multiple_of(8)
        .then(|| run(product, Some(if kept { Gelu::AndResult } else { Gelu::Alone })))?
}

fn run(product: Product, gelu: Option<Gelu>) -> Option<(CudaTensor, Option<CudaTensor>)> {
    let Product { scale, onto, bias, dtype, .. } = product;
    library(Library::CublasLt)?;
    if !paths().epilogues && (onto.is_some() || gelu.is_some()) {
        return None;
    }
    let known = |t: DType| matches!(t, DType::F32 | DType::F16 | DType::BF16);
    let types = product.a.dtype == product.b.dtype && known(product.a.dtype);
    if !types || !(dtype == product.a.dtype || dtype == DType::F32) || !stream::is_open(product.a) {
        return None;
    }
    let (a, b) = (in_line(product.a), in_line(product.b));
    let batches = Batches::new(&a, &b)?;
    let [m, k, n] = [rows(&a), columns(&a), columns(&b)];
    let fits =
        |t: Option<&CudaTensor>, shape: &[usize]| t.is_none_or(|t| t.dtype == dtype && t.meta.shape()[..] == *shape);
    if !fits(onto, &batches.output) || !fits(bias, &[n]) || (onto.is_some() && batches.output.len() > 2) {
        return None;
    }
    let bias = bias.map(|bias| into_contiguous(bias.clone()));
    // Checked before anything here holds it, too.
    let in_place = onto.is_some_and(|onto| onto.can_mut() && lies(onto) == Some(Lies { by_rows: true, apart: n }));
    let c = onto.map(in_line_by_rows);
    let c_apart = c.as_ref().map(|c| lies(c).expect("it was brought in line").apart);

    let factor = |t: &CudaTensor, apart: usize| {
        let lies = lies(t).expect("it was brought in line");
        Factor { transposed: !lies.by_rows, leading: lies.apart, apart }
    };
    let [a_apart, b_apart, d_apart] = batches.inner_strides;
    let starts = batches.starts();
    let sizes = [a.dtype.size(), b.dtype.size(), dtype.size()];
    let mut aligned = 256;
    let tensors = [Some(&a), Some(&b), c.as_ref()];
    for offset in tensors.into_iter().flatten().filter_map(|t| t.handle.offset_start) {
        aligned = divisor(aligned, offset as usize);
    }
    for start in &starts {
        aligned = start.iter().zip(sizes).fold(aligned, |aligned, (start, size)| divisor(aligned, start * size));
    }
    let task = Task {
        gpu: a.device.index,
        rows: n,
        columns: m,
        inner: k,
        batch: batches.inner,
        inputs: a.dtype,
        output: dtype,
        a: factor(&b, b_apart),
        b: factor(&a, a_apart),
        d: [n, d_apart],
        c: c_apart.map(|apart| [apart, d_apart]),
        bias: bias.is_some(),
        gelu,
        aligned,
    };
    let plan = cublaslt::plan(task, &a)?;
    let d = match &c {
        Some(c) if in_place => c.clone(),
        _ => empty(&a, batches.output.clone(), dtype),
    };
    let result = (gelu == Some(Gelu::AndResult)).then(|| empty(&a, batches.output.clone(), dtype));
    let workspace = stream::workspace(&a, WORKSPACE);
    let (has_c, has_bias, has_result) = (c.is_some(), bias.is_some(), result.is_some());
    let inputs: Vec<&CudaTensor> = [Some(&a), Some(&b), c.as_ref(), bias.as_ref()].into_iter().flatten().collect();
    let outputs: Vec<&CudaTensor> = [Some(&d), result.as_ref(), Some(&workspace)].into_iter().flatten().collect();
    stream::enqueue(&inputs, &outputs, move |addresses, stream| {
        let mut addresses = addresses.iter().copied();
        let mut next = |there: bool| if there { addresses.next().unwrap_or_default() } else { 0 };
        let there = [true, true, has_c, has_bias, true, has_result, true];
        let [a, b, c, bias, d, result, workspace] = there.map(&mut next);
        for start in starts {
            let [a_start, b_start, d_start] = [0, 1, 2].map(|i| (start[i] * sizes[i]) as u64);
            let at = Addresses { a: b + b_start, b: a + a_start, c, d: d + d_start, bias, result, workspace };
            // SAFETY: the task has the shapes and strides of the tensors, whose memory is held until the work is on the
            // stream.
            unsafe { plan.run(at, scale, stream)? };
        }
        Ok(())
    });
    Some((d, result))
}

fn rows(t: &CudaTensor) -> usize {
    t.meta.shape()[t.meta.num_dims() - 2]
}

fn columns(t: &CudaTensor) -> usize {
    t.meta.shape()[t.meta.num_dims() - 1]
}

/// The largest power of two up to `aligned` that divides `offset`.
fn divisor(aligned: usize, offset: usize) -> usize {
    if offset == 0 { aligned } else { aligned.min(1 << offset.trailing_zeros()) }
}

/// The layout of the matrices of the last two axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lies {
    /// Whether rows are contiguous; otherwise columns are.
    by_rows: bool,
    /// Elements from one row, or column, to the next.
    apart: usize,
}

fn lies(t: &CudaTensor) -> Option<Lies> {
    let strides = t.meta.strides();
    let last = strides.len() - 1;
    lies_as([rows(t), columns(t)], [strides[last - 1], strides[last]])
}

fn lies_as([rows, columns]: [usize; 2], [down, across]: [usize; 2]) -> Option<Lies> {
    if across == 1 || columns == 1 {
        if rows == 1 {
            return Some(Lies { by_rows: true, apart: columns });
        }
        if down >= columns {
            return Some(Lies { by_rows: true, apart: down });
        }
    }
    if down == 1 || rows == 1 {
        if columns == 1 {
            return Some(Lies { by_rows: false, apart: rows });
        }
        if across >= rows {
            return Some(Lies { by_rows: false, apart: across });
        }
    }
    None
}

fn by_rows(t: &CudaTensor) -> bool {
    lies(t).is_some_and(|lies| lies.by_rows)
}

/// The tensor with contiguous rows or contiguous columns; copied only if it has neither.
fn in_line(t: &CudaTensor) -> CudaTensor {
    if lies(t).is_some() { t.clone() } else { into_contiguous(t.clone()) }
}

/// The tensor with contiguous rows; copied only if they are not.
fn in_line_by_rows(t: &CudaTensor) -> CudaTensor {
    if by_rows(t) { t.clone() } else { into_contiguous(t.clone()) }
}

/// The axes before the last two: matrices at equal distances go into one call, the rest into separate calls.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batches {
    /// The shape of the output.
    output: Vec<usize>,
    /// Matrices per call.
    inner: usize,
    /// Elements from one of them to the next, for the factors and the output.
    inner_strides: [usize; 3],
    /// The other axes: their sizes and strides.
    outer: Vec<(usize, [usize; 3])>,
}

impl Batches {
    /// `None` if the output would be empty, or a sum of no terms.
    fn new(a: &CudaTensor, b: &CudaTensor) -> Option<Self> {
        Self::of([a.meta.shape(), b.meta.shape()], [a.meta.strides(), b.meta.strides()])
    }

    fn of(shapes: [&[usize]; 2], strides: [&[usize]; 2]) -> Option<Self> {
        let axes = shapes[0].len();
        let [m, n] = [shapes[0][axes - 2], shapes[1][axes - 1]];
        if axes != shapes[1].len() || shapes[0][axes - 1] != shapes[1][axes - 2] {
            return None;
        }
        let sizes: Vec<usize> = (0..axes - 2).map(|i| shapes[0][i].max(shapes[1][i])).collect();
        let output = [&sizes[..], &[m, n]].concat();
        if output.contains(&0) || shapes[0][axes - 1] == 0 {
            return None;
        }
        let mut stride = m * n;
        let mut merged: Vec<(usize, [usize; 3])> = vec![];
        // From the last axis to the first.
        for (i, &size) in sizes.iter().enumerate().rev() {
            let of = |t: usize| if shapes[t][i] == 1 { 0 } else { strides[t][i] };
            let here = [of(0), of(1), stride];
            stride *= size;
            if size == 1 {
                continue;
            }
            match merged.last_mut() {
                // One step along this axis spans all of the axes before.
                Some((count, steps)) if (0..3).all(|t| here[t] == *count * steps[t]) => *count *= size,
                _ => merged.push((size, here)),
            }
        }
        let (inner, inner_strides) = if merged.is_empty() { (1, [0; 3]) } else { merged.remove(0) };
        Some(Self { output, inner, inner_strides, outer: merged })
    }

    /// The offsets of the matrices of each call, in elements, for the factors and the output.
    fn starts(&self) -> Vec<[usize; 3]> {
        let mut starts = vec![[0; 3]];
        for (size, steps) in &self.outer {
            let along = |start: [usize; 3]| (0..*size).map(move |i| [0, 1, 2].map(|t| start[t] + i * steps[t]));
            starts = starts.into_iter().flat_map(along).collect();
        }
        starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_told_apart() {
        let by_rows = |apart| Some(Lies { by_rows: true, apart });
        let by_columns = |apart| Some(Lies { by_rows: false, apart });
        assert_eq!(lies_as([3, 5], [5, 1]), by_rows(5));
        assert_eq!(lies_as([3, 5], [8, 1]), by_rows(8));
        assert_eq!(lies_as([3, 5], [1, 3]), by_columns(3));
        assert_eq!(lies_as([3, 5], [1, 7]), by_columns(7));
        // With one row or column, the stride along the other axis has no meaning.
        assert_eq!(lies_as([1, 5], [1, 1]), by_rows(5));
        assert_eq!(lies_as([1, 5], [0, 3]), by_columns(3));
        assert_eq!(lies_as([3, 1], [4, 9]), by_rows(4));
        // Every second element, and rows that are all the same.
        assert_eq!(lies_as([3, 5], [10, 2]), None);
        assert_eq!(lies_as([3, 5], [0, 1]), None);
    }

    #[test]
    fn axes_that_lie_in_one_line_are_one() {
        // q·kᵀ of [B, L, N, K] seen as [B, N, L, K], with B = 2, L = 7, N = 3, K = 4.
        let heads = |shape: [usize; 4], strides: [usize; 4]| (shape, strides);
        let (q, q_strides) = heads([2, 3, 7, 4], [84, 4, 12, 1]);
        let (k, k_strides) = heads([2, 3, 4, 7], [84, 4, 1, 12]);
        let batches = Batches::of([&q, &k], [&q_strides, &k_strides]).unwrap();
        assert_eq!((batches.inner, batches.inner_strides), (3, [4, 4, 49]));
        assert_eq!(batches.starts(), [[0, 0, 0], [84, 84, 147]]);
        // When contiguous, both axes merge, and a factor without these axes is reused for each.
        let (x, strides) = ([2, 3, 7, 4], [84, 28, 4, 1]);
        let batches = Batches::of([&x, &[1, 1, 4, 5]], [&strides, &[20, 20, 5, 1]]).unwrap();
        assert_eq!((batches.inner, batches.inner_strides, batches.starts().len()), (6, [28, 0, 35], 1));
        assert_eq!(batches.output, [2, 3, 7, 5]);
        let flat = Batches::of([&[7, 4], &[4, 5]], [&[4, 1], &[5, 1]]).unwrap();
        assert_eq!((flat.inner, flat.starts(), flat.output), (1, vec![[0; 3]], vec![7, 5]));
        assert_eq!(Batches::of([&[0, 4], &[4, 5]], [&[4, 1], &[5, 1]]), None);
        assert_eq!(Batches::of([&[7, 0], &[0, 5]], [&[1, 1], &[5, 1]]), None);
    }
}
