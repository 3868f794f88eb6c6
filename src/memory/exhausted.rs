//! Device memory that runs out. A backend says so by a panic, late and perhaps on another thread; here it becomes one error.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};

use burn::tensor::Device;

use super::{Level, available, device_usage, gib, release};
use crate::error::{Error, Result};

/// What CubeCL says where an allocation fails: the texts of its errors, and their names, by which errors in a list are told.
const SAID: [&str; 6] = [
    "out of device memory",
    "OutOfMemory",
    "memory pool capacity exceeded",
    "PoolCapacityExceeded",
    "can't allocate buffer of size",
    "BufferTooBig",
];

/// How many [attempts](attempt) are being made.
static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);

/// Whether the message of a panic says that a device has no memory left.
pub(super) fn is_exhaustion(message: &str) -> bool {
    SAID.iter().any(|said| message.contains(said))
}

/// Whether a panic with this message, on whichever thread, becomes the error of an [`attempt`]: then it is not to be reported as one.
pub fn is_attempted(message: &str) -> bool {
    ATTEMPTS.load(Ordering::Relaxed) > 0 && is_exhaustion(message)
}

/// Does `work`; where `device` has no memory left for it, that is an error. What the work held is dropped then, and given back.
///
/// # Errors
/// Those of the work, and [`Error::memory`].
///
/// # Panics
/// The work does, for any other reason.
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
    // What is held now is what is left after the work was dropped: the most that it held is the pools' own figure.
    let (held, free) = (device_usage(device).map(|usage| usage.held), available(device));
    drop(panic);
    // Takes the other errors of the queue off it, which say the same again.
    if let Err(rest) = device.sync() {
        tracing::debug!("{rest}");
    }
    release(device);
    let amount = |bytes: u64, what: &str| format!("{:.2} GiB {what}", gib(bytes));
    let parts = [
        asked(&message).map(|bytes| amount(bytes, "more were asked for")),
        held.map(|bytes| amount(bytes, "are held by this program")),
        free.map(|bytes| amount(bytes, "are free")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let said = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    Err(Error::memory(format!("there is none left{said}"))
        .hint("lower `memory.level`, make images or batches smaller, or close other programs on the device"))
}

/// Does `work` on `subject`. Where `device` has no memory left for it, `lower` takes the subject to the next memory level, and the work
/// is done again; if it names none, the error stands.
///
/// # Errors
/// Those of the work and of `lower`, or there is no level left.
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
        tracing::warn!("{}; once more at memory level `{}`", error.message(), level.word());
    }
}

fn text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

/// The bytes of the allocation that failed: the first number after the word for it.
fn asked(message: &str) -> Option<u64> {
    let marks = ["allocating ", "failed to reserve ", "buffer of size: ", "size: "];
    let after = marks.iter().find_map(|mark| message.split_once(mark))?.1;
    after[..after.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

thread_local! {
    /// Stages of this thread at whose beginning the device is taken to have no memory left, and how often they may begin before.
    static FAULTS: RefCell<Vec<(String, usize)>> = const { RefCell::new(Vec::new()) };
}

/// Lets a stage of this name on this thread, after it began `before` times, fail as a device does that has no memory left: for
/// tests of what happens then.
#[doc(hidden)]
pub fn fail_at(stage: &str, before: usize) {
    FAULTS.with_borrow_mut(|faults| faults.push((stage.into(), before)));
}

/// Fails if a fault waits for this stage.
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
