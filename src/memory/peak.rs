//! The most memory that was in use during a stretch of time, on the host and on the device.
//!
//! The system keeps one high-water mark for the process (`VmHWM` of proc(5)) and lets it be set back (`clear_refs`). A
//! GPU's pools only grow until they are released. Stretches lie within each other, so whenever one begins or is read,
//! and before a release, both marks are taken over into all that are open.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use burn::tensor::Device;

use super::{device_usage, status};

/// A stretch of time that began with this.
#[derive(Debug)]
pub(super) struct Watch(u64);

/// The most that was in use, in bytes.
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
    /// Of the whole process.
    process: Mark,
    /// Of each open stretch, by its number.
    open: BTreeMap<u64, Mark>,
    /// The next number.
    next: u64,
}

static MARKS: Mutex<Marks> = Mutex::new(Marks { process: Mark::NONE, open: BTreeMap::new(), next: 0 });

/// Changes the marks after they were brought up to now.
fn with_marks<T>(device: Option<&Device>, change: impl FnOnce(&mut Marks) -> T) -> T {
    let held = device.and_then(device_usage).map_or(0, |usage| usage.held);
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Mark { host: status("VmHWM:"), device: held };
    marks.process.raise(now);
    marks.open.values_mut().for_each(|mark| mark.raise(now));
    // Where this is not allowed the system's mark stays, and a stretch shows the most that was in use so far.
    _ = std::fs::write("/proc/self/clear_refs", "5");
    change(&mut marks)
}

impl Watch {
    /// Begins a stretch.
    pub(super) fn start(device: &Device) -> Self {
        with_marks(Some(device), |marks| {
            let number = marks.next;
            marks.next += 1;
            marks.open.insert(number, Mark::NONE);
            Self(number)
        })
    }

    /// The most that was in use since.
    pub(super) fn peak(&self, device: &Device) -> Mark {
        with_marks(Some(device), |marks| marks.open.get(&self.0).copied().unwrap_or_default())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        with_marks(None, |marks| _ = marks.open.remove(&self.0));
    }
}

/// Brings all marks up to now, before the device gives memory back.
pub(super) fn take_over(device: &Device) {
    with_marks(Some(device), |_| ());
}

/// The most that was in use on the host since the process started, in bytes.
pub(super) fn of_process() -> u64 {
    with_marks(None, |marks| marks.process.host)
}
