//! The matrix product.

use burn::tensor::Tensor;

use super::operation::assert_one_dtype;
#[cfg(feature = "cuda")]
use super::{
    cuda,
    operation::{Operation, RawTensor, apply},
};

/// `lhs·rhs` over the last two axes, the others broadcasting: the only use of Burn's own `matmul`, which `.clippy.toml`
/// forbids everywhere else.
///
/// On a GPU, products of f32 are exact, as torch's are by default.
///
/// # Panics
/// If the dtypes differ. Burn's CUDA backend would misread one of the two and return garbage.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    assert_one_dtype("a matrix product", &[lhs.dtype(), rhs.dtype()]);
    #[cfg(feature = "cuda")]
    let (lhs, rhs) = {
        let both = [lhs, rhs].map(Tensor::into_dispatch);
        if both.iter().all(cuda::takes_also_on_a_tape) {
            return apply(Product::<D>, both);
        }
        let [lhs, rhs] = both.map(Tensor::from_dispatch);
        (lhs, rhs)
    };
    #[expect(clippy::disallowed_methods, reason = "the dtypes have been compared")]
    lhs.matmul(rhs)
}

/// [`matmul`] on a GPU.
#[cfg(feature = "cuda")]
#[derive(Clone, Debug)]
struct Product<const D: usize>;

#[cfg(feature = "cuda")]
impl<const D: usize> Operation<2> for Product<D> {
    type Saved = [RawTensor; 2];

    fn forward(&self, inputs: [RawTensor; 2]) -> (RawTensor, [RawTensor; 2]) {
        (cuda::matmul::product(cuda::tensors(inputs.clone())), inputs)
    }

    fn backward(
        self,
        saved: [RawTensor; 2],
        gradient: RawTensor,
        [wants_lhs, wants_rhs]: [bool; 2],
    ) -> [Option<RawTensor>; 2] {
        let [lhs, rhs]: [Tensor<D>; 2] = saved.map(Tensor::from_dispatch);
        let g = Tensor::<D>::from_dispatch(gradient);
        let product = |a: Tensor<D>, b: Tensor<D>, shape: [usize; D]| {
            let whole =
                Tensor::<D>::from_dispatch(cuda::matmul::product(cuda::tensors([a, b].map(Tensor::into_dispatch))));
            // A factor that was broadcast along an axis gets the sum of the gradients.
            let shared = (0..D).filter(|&axis| shape[axis] != whole.dims()[axis]).collect::<Vec<_>>();
            shared.into_iter().fold(whole, Tensor::sum_dim).into_dispatch()
        };
        [
            wants_lhs.then(|| product(g.clone(), rhs.clone().transpose(), lhs.dims())),
            wants_rhs.then(|| product(lhs.clone().transpose(), g, rhs.dims())),
        ]
    }
}
