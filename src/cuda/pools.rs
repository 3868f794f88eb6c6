//! How the backend divides the memory of a GPU.

use burn_cubecl::cubecl::{
    Runtime,
    config::{
        memory::{MemoryPoolConfig, MemoryPoolsConfig},
        size::MemorySize,
    },
    cuda::{CudaDevice, CudaRuntime},
};

use crate::panics::unpanicked;

const MIB: u64 = 1 << 20;

/// The pages, and the largest tensor in one, in MiB: small tensors are apart, so that none of them keeps a large page in use.
const PAGES: [[u64; 2]; 3] = [[8, 1], [128, 16], [1024, 1024]];

/// Sets the pages of the GPU `number` with `memory` bytes, which the backend must not have used yet.
///
/// By default they grow with the card, up to a quarter of its memory: 35 GB of 141. A page is kept as a whole, so the ends of such pages
/// take gigabytes that no tensor uses (`benches/results/cuda-stand-in.md`).
pub(super) fn set(number: usize, memory: u64) {
    let pages = |[page, tensor]: [u64; 2]| MemoryPoolConfig::Sliced {
        page_size: MemorySize(page),
        max_slice_size: Some(MemorySize(tensor)),
        max_pool_size: None,
        dealloc_period: None,
    };
    let mut pools = vec![MemoryPoolConfig::Exclusive { max_alloc_size: MemorySize(0), dealloc_period: None }];
    // Larger tensors as by default.
    let most = memory / 4 / MIB * MIB;
    pools.extend(PAGES.map(|sizes| pages(sizes.map(|size| (size * MIB).min(most)))));
    pools.push(pages([most; 2]));
    // Where the backend cannot start, its first use says so.
    let done = unpanicked(|| {
        CudaRuntime::client(&CudaDevice::new(number)).configure_memory_pools(&MemoryPoolsConfig::Explicit(pools))
    });
    if let (Some(false) | None, problem) = done {
        let problem = problem.unwrap_or_else(|| "it is in use".into());
        tracing::debug!("cuda:{number}: the backend's memory stays divided as it is: {problem}");
    }
}
