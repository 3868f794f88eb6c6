//! The most memory that was in use during a stretch of time.
//!
//! The system keeps one high-water mark for the process (`VmHWM` of proc(5)) and lets it be set back (`clear_refs`). Stretches
//! lie within each other, so whenever one begins or is read, the mark is taken over into all that are open.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::status;

/// A stretch of time that began with this.
#[derive(Debug)]
pub(super) struct Watch(u64);

#[derive(Debug)]
struct Marks {
    /// Of the whole process.
    process: u64,
    /// Of each open stretch, by its number.
    open: BTreeMap<u64, u64>,
    /// The next number.
    next: u64,
}

static MARKS: Mutex<Marks> = Mutex::new(Marks { process: 0, open: BTreeMap::new(), next: 0 });

/// Changes the marks after they were brought up to now.
fn with_marks<T>(change: impl FnOnce(&mut Marks) -> T) -> T {
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let now = status("VmHWM:");
    marks.process = marks.process.max(now);
    marks.open.values_mut().for_each(|mark| *mark = (*mark).max(now));
    // Where this is not allowed the system's mark stays, and a stretch shows the most that was in use so far.
    _ = std::fs::write("/proc/self/clear_refs", "5");
    change(&mut marks)
}

impl Watch {
    /// Begins a stretch.
    pub(super) fn start() -> Self {
        with_marks(|marks| {
            let number = marks.next;
            marks.next += 1;
            marks.open.insert(number, 0);
            Self(number)
        })
    }

    /// The most that was in use since, in bytes.
    pub(super) fn peak(&self) -> u64 {
        with_marks(|marks| marks.open.get(&self.0).copied().unwrap_or(0))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        with_marks(|marks| _ = marks.open.remove(&self.0));
    }
}

/// The most that was in use since the process started, in bytes.
pub(super) fn of_process() -> u64 {
    with_marks(|marks| marks.process)
}
