//! Peak memory during a period, on the host and on the device.
//!
//! The system keeps one high-water mark for the process (`VmHWM` of proc(5)) and allows it to be reset (`clear_refs`). A
//! GPU's pools only grow until they are released. Periods nest, so whenever one begins or is read, and before a release,
//! both marks are recorded in all open periods.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use burn::tensor::Device;

use super::{device_usage, status};

/// Tracks the peak from its creation until it is dropped; holds the number of its period.
#[derive(Debug)]
pub(super) struct PeakTracker(u64);

/// Peak memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub host: u64,
    /// Zero on the CPU.
    pub device: u64,
}

impl Mark {
    const NONE: Self = Self { host: 0, device: 0 };

    fn raise(&mut self, other: Self) {
        self.host = self.host.max(other.host);
        self.device = self.device.max(other.device);
    }
}

#[derive(Debug)]
struct Marks {
    /// The peak of the whole process.
    process: Mark,
    /// The peak of each open period, by its number.
    open: BTreeMap<u64, Mark>,
    /// The number of the next period.
    next: u64,
}

static MARKS: Mutex<Marks> = Mutex::new(Marks { process: Mark::NONE, open: BTreeMap::new(), next: 0 });

/// Updates the marks to the present, then applies `change`.
fn with_marks<T>(device: Option<&Device>, change: impl FnOnce(&mut Marks) -> T) -> T {
    let held = device.and_then(device_usage).map_or(0, |usage| usage.held);
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Mark { host: status("VmHWM:"), device: held };
    marks.process.raise(now);
    marks.open.values_mut().for_each(|mark| mark.raise(now));
    // Where this is not permitted the system's mark stays, and a period reports the peak of the process so far.
    _ = std::fs::write("/proc/self/clear_refs", "5");
    change(&mut marks)
}

impl PeakTracker {
    /// Begins a period.
    pub(super) fn start(device: &Device) -> Self {
        with_marks(Some(device), |marks| {
            let number = marks.next;
            marks.next += 1;
            marks.open.insert(number, Mark::NONE);
            Self(number)
        })
    }

    /// The peak since it began.
    pub(super) fn peak(&self, device: &Device) -> Mark {
        with_marks(Some(device), |marks| marks.open.get(&self.0).copied().unwrap_or_default())
    }
}

impl Drop for PeakTracker {
    fn drop(&mut self) {
        with_marks(None, |marks| _ = marks.open.remove(&self.0));
    }
}

/// Updates all marks to the present, before the device releases memory.
pub(super) fn record(device: &Device) {
    with_marks(Some(device), |_| ());
}

/// Peak host memory since the process started, in bytes.
pub(super) fn of_process() -> u64 {
    with_marks(None, |marks| marks.process.host)
}
