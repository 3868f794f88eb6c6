//! Conversions of several tensors in one launch.

use burn::tensor::DType;
use burn_cubecl::{
    cubecl::{self, prelude::*},
    kernel::into_contiguous,
};

use super::{CudaTensor, UNITS, address_type, arguments, empty, one_type, storage, vector_size};

/// The tensors, which have one dtype, in `dtype`.
pub fn cast_all<const N: usize>(tensors: [&CudaTensor; N], dtype: DType) -> [CudaTensor; N] {
    let tensors = tensors.map(|tensor| into_contiguous(tensor.clone()));
    if tensors.iter().all(|tensor| tensor.dtype == dtype) {
        return tensors;
    }
    let results = tensors.each_ref().map(|tensor| empty(tensor, tensor.meta.shape().clone(), dtype));
    let all: Vec<&CudaTensor> = tensors.iter().chain(&results).collect();
    let (size, address, client) = (vector_size(&all), address_type(&all), tensors[0].client.clone());
    let dtypes = [one_type(&tensors.each_ref()), storage(dtype)];
    let most = tensors.iter().map(|tensor| tensor.meta.num_elements() / size).max().unwrap_or(0);
    let count = CubeCount::new_2d((most as u32).div_ceil(UNITS).max(1), N as u32);
    let (from, to) = (arguments(&tensors), arguments(&results));
    // SAFETY: a unit past a tensor does nothing, and each result has the shape of its tensor.
    unsafe { convert::launch_unchecked(&client, count, CubeDim::new_1d(UNITS), address, size, from, to, dtypes) };
    results
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn convert<F: Float, T: Float, N: Size>(
    from: &Sequence<OwnedTensor<Vector<F, N>>>,
    to: &mut Sequence<OwnedTensor<Vector<T, N>>>,
    #[define(F, T)] _dtypes: [StorageType; 2],
) {
    let i = (CUBE_POS_X * UNITS + UNIT_POS) as usize;
    #[unroll]
    for tensor in 0..from.len() {
        if CUBE_POS_Y as usize == tensor {
            let to = &mut to[tensor];
            if i < to.len() {
                to[i] = Vector::cast_from(from[tensor][i]);
            }
        }
    }
}
