//! A request to stop, which reaches whatever is at work in this process: a signal or the dashboard makes it, and long work asks
//! for it between two items.

use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use burn_train::Interrupter;

use crate::error::{Error, Result};

static REQUEST: LazyLock<Interrupter> = LazyLock::new(Interrupter::new);

/// How many stretches of work are under way that lose nothing when the process ends in the middle of them.
static EXPENDABLE: AtomicUsize = AtomicUsize::new(0);

/// What makes the request: to be handed to a display, or to a handler of signals.
pub fn interrupter() -> Interrupter {
    REQUEST.clone()
}

/// Whether the process was asked to stop.
pub fn requested() -> bool {
    REQUEST.should_stop()
}

/// To be called between two items of long work.
///
/// # Errors
/// [`Error::stopped`] if the process was asked to stop.
pub fn check() -> Result<()> {
    if requested() { Err(Error::stopped("", Vec::new())) } else { Ok(()) }
}

/// Does work that cannot stop half-way and is not worth waiting for, such as a download: a request to stop meanwhile ends the
/// process at once.
pub fn expendable<T>(work: impl FnOnce() -> T) -> T {
    struct Under;
    impl Drop for Under {
        fn drop(&mut self) {
            EXPENDABLE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    EXPENDABLE.fetch_add(1, Ordering::SeqCst);
    let _under = Under;
    work()
}

/// Whether work is under way that a request to stop may cut short.
pub fn is_expendable() -> bool {
    EXPENDABLE.load(Ordering::SeqCst) > 0
}
