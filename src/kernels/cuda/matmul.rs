//! Matrix products: by cuBLASLt if available, else by Burn's kernels; products of f32 stay f32.
//!
//! Burn may choose a tensor-core kernel that cuts the mantissa of its inputs from 23 bits to 10 (TF32, `adjust_dtypes` in
//! cubek-matmul's `definition/blueprint.rs`), and there is no switch. torch's default is exact products.

use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, init_matmul_output, matmul};
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems},
        launch::launch_ref,
        routines::{BlueprintStrategy, TileSizeSelection, batch::simple_unit::SimpleUnitSelectionArgs},
        strategy::Strategy,
    },
    std::InputBinding,
};

use super::{CudaTensor, RawTensor, product, raw_tensor, storage};

/// `lhs·rhs` over the last two axes, in one dtype that the kernels read.
pub fn product([lhs, rhs]: [CudaTensor; 2]) -> RawTensor {
    let dtype = lhs.dtype;
    raw_tensor(product_as(lhs, rhs, dtype))
}

/// The same, in `dtype`.
pub(super) fn product_as(lhs: CudaTensor, rhs: CudaTensor, dtype: DType) -> CudaTensor {
    if let Some(product) = product::product(product::Product { dtype, ..product::Product::new(&lhs, &rhs) }) {
        return product;
    }
    match (lhs.dtype, dtype) {
        (DType::F32, DType::F32) => exact(lhs, rhs),
        _ => matmul(lhs, rhs, None, MatmulStrategy::default(), dtype)
            .expect("one of the products that are tried takes any matrix"),
    }
}

/// `lhs·rhs` in f32, without tensor cores.
fn exact(lhs: CudaTensor, rhs: CudaTensor) -> CudaTensor {
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
        // For other sizes the tiled kernel reads past the ends of rows, where there may be NaN.
        let fits = [&lhs, &rhs].iter().all(|t| t.meta.shape().iter().rev().take(2).all(|size| size.is_multiple_of(4)));
        let done = if fits { tiled().or_else(|_| launch(Strategy::Naive)) } else { launch(Strategy::Naive) };
        done.expect("the naive kernel takes every shape");
    }
    out
}
