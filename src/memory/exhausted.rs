//! Running out of device memory. A backend reports it by a panic, late and perhaps on another thread; here it becomes one error.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};

use burn::tensor::Device;

use super::{Level, available, device_usage, gib, release};
use crate::error::{Error, Result};

/// How CubeCL's messages name a failed allocation: the texts of its errors, and the names of their variants (in lists of errors).
const MARKS: [&str; 6] = [
    "out of device memory",
    "OutOfMemory",
    "memory pool capacity exceeded",
    "PoolCapacityExceeded",
    "can't allocate buffer of size",
    "BufferTooBig",
];

/// The number of [attempts](attempt) in progress.
static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);

/// Whether a panic message says that a device is out of memory.
pub(super) fn is_exhaustion(message: &str) -> bool {
    MARKS.iter().any(|mark| message.contains(mark))
}

/// Whether a panic with this message, on whichever thread, becomes the error of an [`attempt`], and so must not be reported as a panic.
pub fn is_attempted(message: &str) -> bool {
    ATTEMPTS.load(Ordering::Relaxed) > 0 && is_exhaustion(message)
}

/// Runs `work`; if `device` runs out of memory, that is an error, and the memory that the work held is released.
///
/// # Errors
/// Those of the work, and [`Error::memory`].
///
/// # Panics
/// If the work panics for any other reason.
pub fn attempt<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let done = catch_unwind(AssertUnwindSafe(work));
    ATTEMPTS.fetch_sub(1, Ordering::Relaxed);
    let panic = match done {
        Ok(done) => return done,
        Err(panic) => panic,
    };
    let Some(message) = text(&*panic).filter(|message| is_exhaustion(message)) else { resume_unwind(panic) };
    let message = message.to_string();
    tracing::debug!("{message}");
    // The work's tensors are dropped by now, but the pools still hold their pages: `held` is the peak.
    let (held, free) = (device_usage(device).map(|usage| usage.held), available(device));
    drop(panic);
    // Drains the other errors of the queue, which repeat this one.
    if let Err(rest) = device.sync() {
        tracing::debug!("{rest}");
    }
    release(device);
    let amount = |bytes: u64, what: &str| format!("{:.2} GiB {what}", gib(bytes));
    let parts = [
        requested(&message).map(|bytes| amount(bytes, "more requested")),
        held.map(|bytes| amount(bytes, "held by this program")),
        free.map(|bytes| amount(bytes, "free")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let amounts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    Err(Error::memory(format!("none left{amounts}"))
        .hint("lower `memory.level`, make images or batches smaller, or close other programs on the device"))
}

/// Runs `work` on `subject`. If `device` runs out of memory, `lower` takes the subject to the next memory level and the work is run
/// again; if `lower` has no level left, the error is returned.
///
/// # Errors
/// Those of the work and of `lower`, or [`Error::memory`] if no level is left.
pub fn fitting<S, T>(
    device: &Device,
    subject: &mut S,
    mut work: impl FnMut(&mut S) -> Result<T>,
    mut lower: impl FnMut(&mut S) -> Result<Option<Level>>,
) -> Result<T> {
    loop {
        let error = match attempt(device, || work(subject)) {
            Err(error) if error.is_out_of_memory() => error,
            done => return done,
        };
        let Some(level) = lower(subject)? else { return Err(error) };
        tracing::warn!("{}; trying again at memory level `{}`", error.message(), level.word());
    }
}

fn text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

/// The size in bytes of the allocation that failed: the number after one of the phrases of CubeCL's messages.
fn requested(message: &str) -> Option<u64> {
    let marks = ["allocating ", "failed to reserve ", "buffer of size: ", "size: "];
    let after = marks.iter().find_map(|mark| message.split_once(mark))?.1;
    after[..after.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

thread_local! {
    /// Stages of this thread that are to fail as if the device were out of memory, and how often each may begin before that.
    static FAULTS: RefCell<Vec<(String, usize)>> = const { RefCell::new(Vec::new()) };
}

/// For tests: makes a stage of this name on this thread, once it has begun `before` times, fail as if the device were out of memory.
#[doc(hidden)]
pub fn fail_at(stage: &str, before: usize) {
    FAULTS.with_borrow_mut(|faults| faults.push((stage.into(), before)));
}

/// Panics if a fault is set for this stage.
pub(super) fn begin(stage: &str) {
    let fails = FAULTS.with_borrow_mut(|faults| {
        let Some(place) = faults.iter().position(|(name, _)| name == stage) else { return false };
        let before = faults[place].1;
        match before {
            0 => _ = faults.remove(place),
            _ => faults[place].1 = before - 1,
        }
        before == 0
    });
    if fails {
        panic!("Error while reading data: server unhealthy, [out of device memory allocating 1073741824 bytes]");
    }
}
