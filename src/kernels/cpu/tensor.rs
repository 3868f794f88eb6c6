//! Tensors of the CPU backend and their data.

use burn::backend::{BackendTensor, DispatchTensorKind};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};

use crate::kernels::operation::RawTensor;

/// The inputs as tensors of the CPU backend, if all of them are f32 on the CPU; otherwise returns them unchanged.
pub fn as_cpu_f32<const N: usize>(inputs: [RawTensor; N]) -> Result<[FlexTensor; N], [RawTensor; N]> {
    let ours =
        |t: &RawTensor| matches!(&t.kind, DispatchTensorKind::Flex(BackendTensor::Float(t)) if t.dtype() == DType::F32);
    if !inputs.iter().all(ours) {
        return Err(inputs);
    }
    Ok(inputs.map(|t| match t.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(t)) => t,
        _ => unreachable!("checked above"),
    }))
}

/// Whether all of these are f32 tensors of the CPU backend, on a tape or not.
pub fn are_cpu_f32(tensors: &[&RawTensor]) -> bool {
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

/// Wraps a tensor of the CPU backend.
pub fn raw_tensor(tensor: FlexTensor) -> RawTensor {
    RawTensor { kind: DispatchTensorKind::Flex(BackendTensor::Float(tensor)), checkpointing: None }
}

/// A contiguous tensor with this data.
pub fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    strided(data, Layout::contiguous(Shape::from(shape)))
}

/// A tensor with this data and layout.
pub fn strided(data: Vec<f32>, layout: Layout) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(data), layout, DType::F32)
}

/// The shape of a tensor of known rank.
pub fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape: &[usize] = tensor.layout().shape();
    shape.try_into().expect("the public function fixes the rank")
}

/// The tensor made contiguous; copied only if it is not.
pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The tensor made contiguous, in memory that nothing else holds: for an update in place.
pub fn exclusive(mut tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.is_contiguous() && tensor.storage::<f32>().len() == tensor.layout().num_elements();
    if !whole {
        tensor = tensor.to_contiguous();
    }
    tensor.storage_mut::<f32>();
    tensor
}

/// The data of a tensor that is [`contiguous`].
pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor is contiguous")
}

/// The tensor with contiguous rows (last axis), wherever the rows lie. Copied only if they are not.
pub fn in_rows(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides.last() == Some(&1) && strides.iter().all(|&s| s >= 0) { tensor } else { tensor.to_contiguous() }
}
