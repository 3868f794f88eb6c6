//! A request to stop the current work of this process, made by a signal or the dashboard. Long work checks for it between two items.

use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use burn_train::Interrupter;

use crate::error::{Error, Result};

static REQUEST: LazyLock<Interrupter> = LazyLock::new(Interrupter::new);

/// The number of running pieces of work during which the process may exit without loss.
static EXPENDABLE: AtomicUsize = AtomicUsize::new(0);

/// A function that makes the request, for displays and signal handlers.
pub fn interrupter() -> Interrupter {
    REQUEST.clone()
}

/// Whether the process was asked to stop.
pub fn requested() -> bool {
    REQUEST.should_stop()
}

/// Checks for a request, between two items of long work.
///
/// # Errors
/// [`Error::stopped`] if the process was asked to stop.
pub fn check() -> Result<()> {
    if requested() { Err(Error::stopped("", Vec::new())) } else { Ok(()) }
}

/// Does work that cannot be interrupted and is not worth waiting for, such as a download: a request to stop ends the process at
/// once.
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

/// Whether such work is running.
pub fn is_expendable() -> bool {
    EXPENDABLE.load(Ordering::SeqCst) > 0
}
