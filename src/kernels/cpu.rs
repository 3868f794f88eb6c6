//! The numbers of float32 tensors of the CPU backend, and the loops over them that use every core.

use std::mem::MaybeUninit;

use burn::backend::{BackendTensor, DispatchTensorKind};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::{gemm::Matrix, operation::Plain, simd::vectorized};

/// Work below this many numbers is not worth waking another core for.
const SERIAL: usize = 16 * 1024;
/// Numbers in one piece of parallel work. A constant, so that sums over pieces never depend on the number of cores.
const PIECE: usize = 16 * 1024;

/// The inputs as tensors of the CPU backend, if all of them are that and f32; otherwise the inputs again.
pub(super) fn floats<const N: usize>(inputs: [Plain; N]) -> Result<[FlexTensor; N], [Plain; N]> {
    let ours =
        |t: &Plain| matches!(&t.kind, DispatchTensorKind::Flex(BackendTensor::Float(t)) if t.dtype() == DType::F32);
    if !inputs.iter().all(ours) {
        return Err(inputs);
    }
    Ok(inputs.map(|t| match t.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(t)) => t,
        _ => unreachable!("checked above"),
    }))
}

/// Whether all of these are tensors of the CPU backend in f32, on a tape or not.
pub(super) fn are_floats(tensors: &[&Plain]) -> bool {
    let ours = |kind: &DispatchTensorKind| match kind {
        DispatchTensorKind::Flex(BackendTensor::Float(t)) => t.dtype() == DType::F32,
        DispatchTensorKind::Flex(BackendTensor::Autodiff(t)) => t.primitive.dtype() == DType::F32,
        _ => false,
    };
    tensors.iter().all(|t| match &t.kind {
        DispatchTensorKind::Autodiff(kind) => ours(kind),
        kind => ours(kind),
    })
}

/// A tensor of the CPU backend for the rest of the program.
pub(super) fn plain(tensor: FlexTensor) -> Plain {
    Plain { kind: DispatchTensorKind::Flex(BackendTensor::Float(tensor)), checkpointing: None }
}

/// A tensor of these numbers.
pub(super) fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    strided(data, Layout::contiguous(Shape::from(shape)))
}

/// A tensor of these numbers in an order of our choice.
pub(super) fn strided(data: Vec<f32>, layout: Layout) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(data), layout, DType::F32)
}

/// The sizes of a tensor of known rank.
pub(super) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape: &[usize] = tensor.layout().shape();
    shape.try_into().expect("the public function fixes the rank")
}

/// The tensor with its numbers in order, copied only if they are not.
pub(super) fn in_order(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The tensor with nothing but its numbers, in order, in memory that nothing else holds: for an update in place.
pub(super) fn exactly(mut tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.is_contiguous() && tensor.storage::<f32>().len() == tensor.layout().num_elements();
    if !whole {
        tensor = tensor.to_contiguous();
    }
    tensor.storage_mut::<f32>();
    tensor
}

/// The numbers of a tensor that is [in order](in_order).
pub(super) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was brought in order")
}

/// The tensor with the numbers of each row (its last axis) side by side; rows may lie anywhere. Copied only if they are not.
pub(super) fn in_rows(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides.last() == Some(&1) && strides.iter().all(|&s| s >= 0) { tensor } else { tensor.to_contiguous() }
}

/// Rows of a tensor of up to four axes that is [in rows](in_rows).
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    storage: &'a [f32],
    start: usize,
    strides: [usize; 3],
    pub width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let (outer, last) = layout.strides().split_at(layout.num_dims() - 1);
        assert_eq!(last, [1], "the tensor was brought in rows");
        let mut strides = [0; 3];
        for (to, &from) in strides.iter_mut().rev().zip(outer.iter().rev()) {
            *to = from as usize;
        }
        let width = layout.shape()[layout.num_dims() - 1];
        Self { storage: tensor.storage(), start: layout.start_offset(), strides, width }
    }

    /// The row at these indices of the axes before the last; a tensor of fewer axes has leading ones.
    #[inline(always)]
    pub(super) fn row(&self, [i, j, k]: [usize; 3]) -> &'a [f32] {
        let start = self.start + i * self.strides[0] + j * self.strides[1] + k * self.strides[2];
        &self.storage[start..start + self.width]
    }

    /// The rows `[i, j, 0..count]` as a matrix.
    pub(super) fn matrix(&self, i: usize, j: usize, count: usize) -> Matrix<'a> {
        let start = self.start + i * self.strides[0] + j * self.strides[1];
        Matrix { data: &self.storage[start..], rows: count, columns: self.width, strides: (self.strides[2], 1) }
    }
}

/// Numbers that a loop is about to write.
pub(super) type Fresh = [MaybeUninit<f32>];

/// `count` new numbers, in rows of `width` of which the last may be shorter. `write` gets the index of a row and its place,
/// runs vectorized, and must write all of it.
pub(super) fn build(count: usize, width: usize, write: impl Fn(usize, &mut Fresh) + Sync) -> Vec<f32> {
    build_noting(count, width, write).0
}

/// As [`build`], with what `write` notes about each row.
pub(super) fn build_noting<T: Send>(
    count: usize,
    width: usize,
    write: impl Fn(usize, &mut Fresh) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    let mut data = Vec::with_capacity(count);
    let fresh = &mut data.spare_capacity_mut()[..count];
    let width = width.max(1);
    let each = (PIECE / width).max(1);
    let piece = |(piece, place): (usize, &mut Fresh)| {
        let mut notes = Vec::with_capacity(place.len().div_ceil(width));
        vectorized(
            #[inline(always)]
            || {
                for (row, place) in place.chunks_mut(width).enumerate() {
                    notes.push(write(piece * each + row, place));
                }
            },
        );
        notes
    };
    let notes = if count <= SERIAL {
        piece((0, fresh))
    } else {
        let notes: Vec<Vec<T>> = fresh.par_chunks_mut(each * width).enumerate().map(piece).collect();
        notes.into_iter().flatten().collect()
    };
    // SAFETY: every row was handed to `write`, which writes all of it.
    unsafe { data.set_len(count) };
    (data, notes)
}

/// `Σ` over rows of what `add` adds to `sums`, `columns` numbers; the order of the additions is fixed.
pub(super) fn column_sums(rows: usize, columns: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let each = (PIECE / columns.max(1)).max(1);
    let piece = |piece: usize| {
        let mut sums = vec![0.0; columns];
        vectorized(
            #[inline(always)]
            || (piece * each..rows.min((piece + 1) * each)).for_each(|row| add(row, &mut sums)),
        );
        sums
    };
    let pieces = rows.div_ceil(each);
    let partial: Vec<Vec<f32>> = if rows * columns <= SERIAL {
        (0..pieces).map(piece).collect()
    } else {
        (0..pieces).into_par_iter().map(piece).collect()
    };
    let mut partial = partial.into_iter();
    let mut sums = partial.next().unwrap_or_else(|| vec![0.0; columns]);
    for part in partial {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sums
}
