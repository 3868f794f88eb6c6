//! The driver library, asked through its C interface.

use cudarc::driver::{
    result::{self, DriverError, ctx, device, primary_ctx},
    sys,
};

use super::{Driver, Gpu, Version};
use crate::error::{Error, Result};

/// Loads the driver and asks it for its GPUs.
pub(super) fn find() -> Result<Driver> {
    // SAFETY: the driver library has no start-up code that asks anything of us.
    if !unsafe { sys::is_culib_present() } {
        return Err(failed("there is no NVIDIA driver (the library libcuda.so.1 cannot be loaded)").hint(
            "install the driver, so that `nvidia-smi` works (in a container: start it with `--gpus all`), or use `device cpu`",
        ));
    }
    let cuda = cuda_version();
    let refused = |error: DriverError| refused(error.0 as u32, cuda);
    result::init().map_err(refused)?;
    let count = device::get_count().map_err(refused)?;
    let gpus: Vec<Gpu> = (0..count).map(gpu).collect::<std::result::Result<_, _>>().map_err(refused)?;
    if gpus.is_empty() {
        return Err(self::refused(sys::CUresult::CUDA_ERROR_NO_DEVICE as u32, cuda));
    }
    Ok(Driver { cuda, release: release(), gpus })
}

/// The driver answers this also where it cannot start.
fn cuda_version() -> Version {
    let mut version = 0;
    // SAFETY: `CUresult cuDriverGetVersion(int *)` writes one number, and needs no start.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    Version { major: version as u32 / 1000, minor: version as u32 % 1000 / 10 }
}

fn gpu(number: i32) -> std::result::Result<Gpu, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = device::get(number)?;
    // SAFETY: `device` is what the driver just gave for this number.
    let (memory, major, minor) = unsafe {
        (device::total_mem(device)?, device::get_attribute(device, MAJOR)?, device::get_attribute(device, MINOR)?)
    };
    let capability = Version { major: major as u32, minor: minor as u32 };
    Ok(Gpu { name: device::get_name(device)?, memory: memory as u64, capability })
}

/// The memory of a GPU that no program holds, in bytes.
pub(super) fn free(number: usize) -> Option<u64> {
    // SAFETY: the library was asked for before, and the context of this device that the backend uses, too, is held until it
    // has answered; the one that was current before is current again after.
    unsafe {
        if !sys::is_culib_present() {
            return None;
        }
        result::init().ok()?;
        let device = device::get(i32::try_from(number).ok()?).ok()?;
        let context = primary_ctx::retain(device).ok()?;
        let before = ctx::get_current().ok()?;
        let free = ctx::set_current(context).and_then(|()| result::mem_get_info()).ok().map(|(free, _)| free as u64);
        ctx::set_current(before.unwrap_or(std::ptr::null_mut())).ok()?;
        primary_ctx::release(device).ok()?;
        free
    }
}

/// The number by which `nvidia-smi` calls the driver; the driver's library does not tell it.
fn release() -> Option<String> {
    // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build …"
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_number = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_number).map(String::from)
}

fn failed(problem: impl Into<String>) -> Error {
    Error::setting("device cuda", problem)
}

/// The meaning of an error code of `cuInit` and later calls, with a hint. The codes are those of `cuda.h`.
fn refused(code: u32, cuda: Version) -> Error {
    let (problem, next_move) = match code {
        100 => (
            "finds no GPU",
            "`nvidia-smi -L` lists what it can see; CUDA_VISIBLE_DEVICES may hide GPUs; or use `device cpu`",
        ),
        34 => (
            "is only the toolkit's stub for linking",
            "take the toolkit's `stubs` folder out of LD_LIBRARY_PATH, and install the NVIDIA driver",
        ),
        35 | 222 => ("is too old for this program", "install a newer NVIDIA driver"),
        46 => (
            "says that the GPU is in use by another process alone",
            "`nvidia-smi` names that process; wait for it, or choose another GPU",
        ),
        101 => ("says that a GPU was asked for that is not there", "correct CUDA_VISIBLE_DEVICES, or unset it"),
        802 => (
            "says that the system is not ready yet",
            "GPUs joined by NVSwitch need the service nvidia-fabricmanager, of the driver's version: start it",
        ),
        803 => (
            "and the loaded kernel module are of different versions",
            "the driver was updated under a running system: reboot, or reload the nvidia module; in a container, take its own libcuda out of LD_LIBRARY_PATH",
        ),
        804 => (
            "is a compatibility package that does not work with this GPU",
            "take the `compat` folder out of LD_LIBRARY_PATH, and update the NVIDIA driver itself",
        ),
        999 => (
            "does not start, for a reason it does not know",
            "see whether `nvidia-smi` works; after a suspend or an update reload the module (`modprobe -r nvidia_uvm && modprobe nvidia_uvm`) or reboot",
        ),
        _ => ("does not start", "see whether `nvidia-smi` works, and look for NVRM in the kernel's log (`dmesg`)"),
    };
    failed(format!("the NVIDIA driver (for CUDA {cuda}) {problem} (error {code})")).hint(next_move)
}
