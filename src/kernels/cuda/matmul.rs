//! Matrix products in f32 that stay f32.
//!
//! What Burn chooses may be a kernel for the tensor cores, which cuts the mantissa of its inputs from 23 bits to 10 (TF32,
//! `adjust_dtypes` in cubek-matmul's `definition/blueprint.rs`), and there is no switch. torch's default is exact products.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::matmul::init_matmul_output;
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems},
        launch::launch_ref,
        routines::{BlueprintStrategy, TileSizeSelection, batch::simple_unit::SimpleUnitSelectionArgs},
        strategy::Strategy,
    },
    std::InputBinding,
};

use super::{CudaTensor, Plain, plain, storage, takes, tensors};

/// Whether [`product`] is for these: f32 on a GPU, not on a tape.
pub(in crate::kernels) fn is_exact(inputs: &[Plain; 2]) -> bool {
    takes(inputs) && inputs.iter().all(|input| input.dtype() == DType::F32)
}

/// `lhs·rhs` over the last two axes, without tensor cores.
pub(in crate::kernels) fn product(inputs: [Plain; 2]) -> Plain {
    let [lhs, rhs] = tensors(inputs);
    let out = init_matmul_output(&lhs, &rhs, DType::F32);
    let number = storage(DType::F32);
    let launch = |strategy: Strategy| {
        let input = |tensor: &CudaTensor| InputBinding::new(tensor.clone().binding(), number);
        let mut numbers = MatmulElems::from_globals(&MatmulGlobalElems { lhs: number, rhs: number, out: number });
        launch_ref(&strategy, &out.client, input(&lhs), input(&rhs), out.clone().binding(), &mut numbers)
    };
    if !out.meta.shape().contains(&0) {
        let tile_size = TileSizeSelection::MaxTileSize;
        let tiled = || launch(Strategy::SimpleUnit(BlueprintStrategy::Inferred(SimpleUnitSelectionArgs { tile_size })));
        // Of other sizes the tiled kernel takes in what lies behind the rows, which may be no number.
        let fits = [&lhs, &rhs].iter().all(|t| t.meta.shape().iter().rev().take(2).all(|size| size.is_multiple_of(4)));
        let done = if fits { tiled().or_else(|_| launch(Strategy::Naive)) } else { launch(Strategy::Naive) };
        done.expect("the naive kernel takes every shape");
    }
    plain(out)
}
