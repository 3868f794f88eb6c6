//! The matrix product, and the rule that what is multiplied is of one number type.

use burn::tensor::{DType, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;

/// `lhs·rhs` over the last two axes, the others broadcasting: the only home of Burn's own `matmul`, which `clippy.toml`
/// keeps out of everywhere else.
///
/// On a GPU, products of f32 are exact, as torch's are by default, but for those on a tape.
///
/// # Panics
/// The two are of different number types. Burn's CUDA backend would read the one as if it held the other's numbers, and
/// answer with garbage.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    assert_one_dtype("a matrix product", &[lhs.dtype(), rhs.dtype()]);
    #[cfg(feature = "cuda")]
    let (lhs, rhs) = {
        let both = [lhs, rhs].map(Tensor::into_dispatch);
        if cuda::takes(&both) {
            return Tensor::from_dispatch(cuda::matmul::product(both));
        }
        let [lhs, rhs] = both.map(Tensor::from_dispatch);
        (lhs, rhs)
    };
    #[expect(clippy::disallowed_methods, reason = "the number types have been compared")]
    lhs.matmul(rhs)
}

/// Panics, naming the number types, unless all are the same.
#[track_caller]
pub(super) fn assert_one_dtype(what: &str, dtypes: &[DType]) {
    assert!(dtypes.windows(2).all(|pair| pair[0] == pair[1]), "{what} of mixed number types: {dtypes:?}");
}
