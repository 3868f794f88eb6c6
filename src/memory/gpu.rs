//! GPU memory, as reported by the backend's pools.
//!
//! The numbers come from CubeCL's memory management, not from the driver (`cuMemGetInfo`): the driver counts every program on
//! the card, and sees neither what is free inside a page nor what is waiting to be freed. Pools take pages from the driver as they
//! need them and return none before [`release`](super::release), so what they hold is also the peak since then. The driver's own
//! share (context, compiled kernels; a few hundred MiB) comes on top.

use burn::tensor::Device;

/// Memory of this program on a GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Taken by live tensors.
    pub in_use: u64,
    /// Held by the pools: tensors, gaps between them, and pages kept for later. This is also the peak since the last
    /// [`release`](super::release).
    pub held: u64,
}

/// Memory of this program's tensors on `device`; `None` on the CPU, where tensors are host memory. Does not synchronize: queued
/// work was given its memory when it was queued.
#[cfg(feature = "cuda")]
pub fn device_usage(device: &Device) -> Option<DeviceUsage> {
    use burn::backend::DispatchDevice;
    use burn_cubecl::cubecl::{Runtime, cuda::CudaRuntime};
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cuda(gpu) => {
            let usage = CudaRuntime::client(gpu).memory_usage().ok()?;
            Some(DeviceUsage { in_use: usage.bytes_in_use, held: usage.bytes_reserved })
        }
        _ => None,
    }
}

/// Always `None`: this build has no GPU support.
#[cfg(not(feature = "cuda"))]
pub fn device_usage(_: &Device) -> Option<DeviceUsage> {
    None
}
