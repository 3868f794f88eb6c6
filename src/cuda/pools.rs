//! How the backend takes memory from a GPU.

use burn::{backend::DispatchDevice, tensor::Device};
use burn_cubecl::cubecl::{
    Runtime,
    config::{
        memory::{MemoryPoolConfig, MemoryPoolsConfig},
        size::MemorySize,
    },
    cuda::CudaRuntime,
};

/// Sets the pages in which the backend takes memory, to be cut into tensors. To be called before the first tensor.
///
/// The backend's own sizes are fractions of the card's memory: on a large one a page has 2 or 9 GB, of which a tensor of
/// 600 MB may be all there is. Counted on the stand-in of tests/cuda, a step of FLUX.1 at 1024² holds 26.2 GiB with these,
/// and 28.6 with the backend's. Pages go back to the driver when a stage ends ([`crate::memory::release`]).
pub(super) fn cut(device: &Device) {
    const MIB: u64 = 1 << 20;
    let DispatchDevice::Cuda(gpu) = device.as_dispatch() else { return };
    let client = CudaRuntime::client(gpu);
    let pages = |page_size, largest| MemoryPoolConfig::Sliced {
        page_size: MemorySize(page_size),
        max_slice_size: Some(MemorySize(largest)),
        max_pool_size: None,
        dealloc_period: None,
    };
    let alone = MemoryPoolConfig::Exclusive {
        max_alloc_size: MemorySize(client.properties().memory.max_page_size),
        dealloc_period: None,
    };
    let pools = vec![pages(32 * MIB, 2 * MIB), pages(1024 * MIB, 1024 * MIB), alone];
    if !client.configure_memory_pools(&MemoryPoolsConfig::Explicit(pools)) {
        tracing::debug!("the device is in use already: it takes memory in pages of the backend's own sizes");
    }
}
