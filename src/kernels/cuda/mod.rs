//! The operations as kernels for NVIDIA GPUs, with one launch per direction (two where sums run over the rows).
//!
//! Composed of Burn's operations, each elementwise step would be a launch and a pass over memory: at FLUX's sizes as much time as
//! the matrix products. The kernels are written in CubeCL, which compiles them to CUDA C++ at run time for the dtypes and vector
//! widths in use. They read f32, f16 or bf16, compute in f32, and write the dtype that they read.

pub(super) mod activation;
pub(super) mod adamw;
mod cast;
mod cudnn;
mod stream;
mod ready;
pub(super) mod attention;
pub(super) mod conv;
mod cublaslt;
pub(super) mod geglu;
pub(super) mod group_norm;
mod product;
pub(super) mod matmul;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod residual;
pub(super) mod rope;
pub(super) mod softmax;

use burn::backend::{BackendTensor, Cuda, DispatchTensorKind, tensor::FloatTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::{
    cubecl::{
        self,
        cuda::CudaRuntime,
        ir::{ElemType, FloatKind},
        prelude::*,
        tensor_vector_size_parallel,
    },
    kernel::into_contiguous,
    ops::numeric::empty_device_contiguous_dtype,
};

use super::operation::{RawTensor, assert_one_dtype};

/// A tensor of the CUDA backend.
pub(super) type CudaTensor = FloatTensor<Cuda>;

/// The inputs as tensors of a GPU, if all are on one in a dtype that the kernels read; otherwise the inputs again.
pub(super) fn as_cuda_floats<const N: usize>(inputs: [RawTensor; N]) -> Result<[CudaTensor; N], [RawTensor; N]> {
    if inputs.iter().all(takes) { Ok(tensors(inputs)) } else { Err(inputs) }
}

/// The same of any number of tensors.
pub(super) fn all(inputs: Vec<RawTensor>) -> Result<Vec<CudaTensor>, Vec<RawTensor>> {
    match inputs.iter().all(takes) {
        true => Ok(inputs.into_iter().flat_map(|input| tensors([input])).collect()),
        false => Err(inputs),
    }
}

/// Whether the kernels take this: on a GPU, in a dtype they read.
fn takes(input: &RawTensor) -> bool {
    match &input.kind {
        DispatchTensorKind::Cuda(BackendTensor::Float(t)) => {
            matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16)
        }
        _ => false,
    }
}

/// Whether the kernels accept this tensor, on a tape or not.
pub(super) fn takes_also_on_a_tape(input: &RawTensor) -> bool {
    let dtype = match &input.kind {
        DispatchTensorKind::Autodiff(kind) => match kind.as_ref() {
            DispatchTensorKind::Cuda(BackendTensor::Autodiff(t)) => t.primitive.dtype,
            _ => return false,
        },
        _ => return takes(input),
    };
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// What is known to be on a GPU.
pub(super) fn tensors<const N: usize>(inputs: [RawTensor; N]) -> [CudaTensor; N] {
    inputs.map(|input| match input.kind {
        DispatchTensorKind::Cuda(BackendTensor::Float(tensor)) => tensor,
        _ => unreachable!("an operation stays on the backend of its inputs"),
    })
}

/// Wraps a tensor of the CUDA backend.
pub(super) fn raw_tensor(tensor: CudaTensor) -> RawTensor {
    RawTensor { kind: DispatchTensorKind::Cuda(BackendTensor::Float(tensor)), checkpointing: None }
}

/// Uninitialized memory for a contiguous result on the device of `like`.
fn empty(like: &CudaTensor, shape: impl Into<Shape>, dtype: DType) -> CudaTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// CubeCL's name of a dtype that the kernels read.
fn storage(dtype: DType) -> StorageType {
    let kind = match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    };
    StorageType::Scalar(ElemType::Float(kind))
}

/// The common dtype of all these.
#[track_caller]
fn one_type(tensors: &[&CudaTensor]) -> StorageType {
    let dtypes: Vec<DType> = tensors.iter().map(|t| t.dtype).collect();
    assert_one_dtype("a kernel", &dtypes);
    storage(dtypes[0])
}

/// How many adjacent elements of the last axis one unit can read at once: 16 bytes of the widest dtype, if the rows of all
/// tensors are aligned for it.
fn vector_size(tensors: &[&CudaTensor]) -> VectorSize {
    let widest = tensors.iter().map(|t| t.dtype.size()).max().unwrap_or(4);
    let fits = |t: &&CudaTensor| {
        let sizes = t.client.io_optimized_vector_sizes(widest);
        tensor_vector_size_parallel(sizes, t.meta.shape(), t.meta.strides(), t.meta.num_dims() - 1)
    };
    tensors.iter().map(fits).min().unwrap_or(1)
}

/// Wide enough for every position in the tensors.
fn address_type(tensors: &[&CudaTensor]) -> AddressType {
    tensors.iter().map(|t| t.required_address_type()).max().unwrap_or_default()
}

/// Tensors as one argument of a kernel that has the code for each of them.
fn arguments<'a, E: LaunchArg<RuntimeArg<CudaRuntime> = TensorArg<CudaRuntime>>>(
    tensors: impl IntoIterator<Item = &'a CudaTensor>,
) -> SequenceArg<CudaRuntime, E> {
    tensors.into_iter().map(|tensor| tensor.clone().into_tensor_arg()).collect()
}

/// Units per cube in kernels whose units work independently.
const UNITS: u32 = 256;

/// The cubes for `units` independent units.
fn cubes_of_units(like: &CudaTensor, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS);
    (cubecl::calculate_cube_count_elemwise(&like.client, units, dim), dim)
}

/// The tensor with contiguous rows (last axis), wherever the rows lie. Copied only if they are not.
fn in_rows(tensor: CudaTensor) -> CudaTensor {
    if tensor.meta.strides().last() == Some(&1) { tensor } else { into_contiguous(tensor) }
}

/// The shape of a tensor of known rank.
fn dims<const D: usize>(tensor: &CudaTensor) -> [usize; D] {
    let shape: &[usize] = tensor.meta.shape();
    shape.try_into().expect("the public function fixes the rank")
}

/// Units that run in lockstep and sum their values without shared memory.
const PLANE: u32 = 32;

/// The number of planes of a cube that works on one row in `units` pieces.
fn planes_for(units: usize) -> u32 {
    (units as u32).div_ceil(PLANE).clamp(1, UNITS / PLANE)
}

/// The sum of `value` over the units of the cube, returned to each of them. `shared` has one element per plane.
#[cube]
fn cube_sum(value: f32, shared: &mut Shared<[f32]>, #[comptime] planes: u32) -> f32 {
    let sum = plane_sum(value);
    if planes == 1 {
        sum
    } else {
        // Waits until no unit still reads the previous sum.
        sync_cube();
        if UNIT_POS_PLANE == 0 {
            shared[PLANE_POS as usize] = sum;
        }
        sync_cube();
        let mut total = 0.0f32;
        #[unroll]
        for plane in 0..planes {
            total += shared[plane as usize];
        }
        total
    }
}

/// The number of rows that one unit sums if a sum runs over the tokens.
const TOKENS: usize = 32;

/// `[B, chunks, D]` → `[B, D]`.
fn sum_chunks(partial: CudaTensor) -> burn::tensor::Tensor<2> {
    burn::tensor::Tensor::<3>::from_dispatch(raw_tensor(partial)).sum_dim(1).squeeze_dim(1)
}
