//! Memory of a GPU, as the backend's pools know it.
//!
//! Asked of CubeCL's memory management, not of the driver (`cuMemGetInfo`): the driver counts every program on the
//! card, and sees neither what is free inside a page nor what is waiting to be freed. Pools take pages from the driver
//! as they need them and give none back until [`release`](super::release): what they hold is also the most they have
//! held since then. The driver's own share (context, compiled kernels; some hundred MiB) comes on top.

use burn::tensor::Device;

/// Memory of this program on a GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Of tensors that are alive.
    pub in_use: u64,
    /// Held by the pools: tensors, what is free between them, and pages kept for later. The most since the last
    /// [`release`](super::release).
    pub held: u64,
}

/// What this program's tensors take on `device`; `None` on the CPU, where tensors are host memory. Does not wait: what
/// is queued was given its memory when it was queued.
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

/// This build has no GPU in it.
#[cfg(not(feature = "cuda"))]
pub fn device_usage(_: &Device) -> Option<DeviceUsage> {
    None
}
