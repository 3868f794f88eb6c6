//! Tensors that last as long as the model.

use burn::tensor::{Device, Tensor};

/// Calls `make(from)` for tensors that last as long as the model: a GPU allocates their exact size, apart from activations.
pub(super) fn keep<T: Send, const D: usize>(
    device: &Device,
    from: T,
    make: impl Fn(T) -> Tensor<D> + Send,
) -> Tensor<D> {
    device.memory_persistent_allocations(from, make)
}
