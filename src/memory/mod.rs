//! Host and device memory: how much is in use, releasing it, and how much a piece of work may take.

mod allocator;
mod gpu;
mod level;
mod peak;
mod exhausted;
mod plan;
mod stage;

pub use allocator::tune_allocator;
use burn::tensor::Device;
pub use exhausted::{attempt, fail_at, fitting, is_attempted};
pub use gpu::{DeviceUsage, device_usage};
pub use level::{Bytes, Level, LevelChoice, MemoryConfig};
pub use plan::{Phase, Plan};
pub use stage::{Measured, Stage};

use crate::cuda;

/// Host memory of this process, in bytes; zero where the operating system does not report it (only Linux does).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use now (resident set). With the CPU device this includes everything: weights, activations and the program.
    pub resident: u64,
    /// The peak since the process started.
    pub peak: u64,
}

impl Usage {
    /// [`resident`](Self::resident) in MiB.
    pub fn resident_mib(&self) -> f64 {
        mib(self.resident)
    }

    /// [`peak`](Self::peak) in MiB.
    pub fn peak_mib(&self) -> f64 {
        mib(self.peak)
    }
}

/// The memory in use. Synchronizes with `device` first, so that pending work is counted.
pub fn usage(device: &Device) -> Usage {
    wait_for(device);
    Usage { resident: status("VmRSS:"), peak: peak::of_process() }
}

/// The memory that a computation on `device` could still take, in bytes. On the host: what the system can provide without
/// swapping, and inside a container no more than its limit leaves. On a GPU: what is free on the card. `None` where it is unknown
/// (among hosts, only Linux reports it).
pub fn available(device: &Device) -> Option<u64> {
    if let Some(number) = cuda::number(device) {
        return cuda::free(number);
    }
    let host = system("MemAvailable:")?;
    let number =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let left = number("memory.max").zip(number("memory.current")).map(|(most, now)| most.saturating_sub(now));
    Some(left.map_or(host, |left| left.min(host)))
}

/// The total memory of this machine, in bytes; `None` where the system does not report it (only Linux does).
pub fn total() -> Option<u64> {
    system("MemTotal:")
}

/// The field `name` of `/proc/meminfo`, in bytes.
fn system(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A field of `/proc/self/status`, such as "VmRSS:     123456 kB", in bytes; 0 where there is none.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = || status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok();
    kilobytes().map_or(0, |kilobytes: u64| kilobytes * 1024)
}

/// Bytes in GiB.
pub fn gib(bytes: u64) -> f64 {
    mib(bytes) / 1024.0
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Releases memory that is no longer used: the device's free pages and the allocator's.
pub fn release(device: &Device) {
    wait_for(device);
    peak::record(device); // what the pools hold now is their peak since the last release
    device.memory_cleanup();
    allocator::trim();
}

fn wait_for(device: &Device) {
    let Err(e) = device.sync() else { return };
    let message = e.to_string();
    // The device reports this only once; without the panic, values computed without memory would be taken for a result.
    if exhausted::is_exhaustion(&message) && !std::thread::panicking() {
        panic!("{message}");
    }
    tracing::warn!("the device reported an error while synchronizing: {message}");
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_large_allocation_shows_and_its_release_too() {
        let device = Device::flex();
        let before = usage(&device).resident_mib();
        let pages = vec![1u8; 512 << 20];
        let during = usage(&device).resident_mib();
        assert!(during > before + 400.0, "{before} {during}");
        drop(std::hint::black_box(pages));
        release(&device);
        let after = usage(&device);
        assert!(after.resident_mib() < during - 400.0, "{during} {after:?}");
        assert!(after.peak_mib() > after.resident_mib() + 400.0, "{after:?}");

        // In the same test, so that nothing else large is allocated meanwhile: a stage knows its own peak.
        let outer = Stage::enter("outer", &device);
        let inner = Stage::enter("inner", &device);
        drop(std::hint::black_box(vec![1u8; 256 << 20]));
        let large = inner.measure();
        drop(inner);
        let later = Stage::enter("later", &device).measure();
        assert!(large.peak > large.before + (200 << 20), "{large:?}");
        assert!(outer.measure().peak >= large.peak);
        assert!(later.peak < large.peak - (100 << 20), "{later:?} after {large:?}");
    }
}
