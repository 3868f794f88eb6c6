//! Catching panics of work that may fail, as text.
//!
//! [`unpanicked`] catches those of all threads, for measurements. [`guarded`] is for libraries that panic on broken files: a panic in
//! one of them means only that the file is broken; the value being built is dropped.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

thread_local! {
    /// The number of guards around this thread's current work.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
}

/// The result of `f`, `None` if it panics, and the messages of all panics meanwhile, on any thread, at most three of them.
/// Nothing is printed. One thread at a time listens, since there is one hook for all: `f` must not call this again.
pub fn unpanicked<T>(f: impl FnOnce() -> T) -> (Option<T>, Option<String>) {
    static LISTENS: Mutex<()> = Mutex::new(());
    let _alone = LISTENS.lock().unwrap_or_else(PoisonError::into_inner);
    let messages = Arc::new(Mutex::new(Vec::new()));
    let sink = messages.clone();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or(String::new(), |place| format!(" ({}:{})", place.file(), place.line()));
        let message = panic.payload_as_str().unwrap_or("no message").to_string() + &place;
        sink.lock().unwrap_or_else(PoisonError::into_inner).push(message.replace('\n', " "));
    }));
    let result = catch_unwind(AssertUnwindSafe(f)).ok();
    panic::set_hook(before);
    let mut messages = std::mem::take(&mut *messages.lock().unwrap_or_else(PoisonError::into_inner));
    let count = messages.len();
    messages.dedup();
    messages.truncate(3);
    (result, (count > 0).then(|| format!("panicked ({count}): {}", messages.join("; "))))
}

/// Runs `read`, which passes a file to a library; a panic becomes an error with its message.
///
/// # Errors
/// The panic message of the library in one line.
pub fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    GUARDS.with(|guards| guards.set(guards.get() + 1));
    let done = catch_unwind(AssertUnwindSafe(read));
    GUARDS.with(|guards| guards.set(guards.get() - 1));
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        let line = text.and_then(|text| text.lines().next()).unwrap_or("no message");
        format!("the library that reads it gave up: {line}")
    })
}

/// Whether a panic of this thread is caught, and must not be reported as a bug.
pub fn is_guarded() -> bool {
    GUARDS.with(|guards| guards.get() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_several_threads_at_once_are_each_heard() {
        let threads: Vec<_> = (0..8).map(|i| std::thread::spawn(move || unpanicked(|| panic!("number {i}")))).collect();
        for (i, thread) in threads.into_iter().enumerate() {
            let (nothing, said) = thread.join().unwrap();
            let nothing: Option<()> = nothing;
            assert!(nothing.is_none() && said.unwrap().contains(&format!("number {i}")));
        }
    }

    #[test]
    fn a_panic_becomes_its_message_and_nothing_stays_guarded() {
        assert_eq!(guarded(|| 3), Ok(3));
        let nothing: Vec<u8> = Vec::new();
        let index = std::hint::black_box(7);
        let said = guarded(|| guarded(|| nothing[index]).unwrap_err()).unwrap();
        assert!(said.contains("index out of bounds"), "{said}");
        assert!(!is_guarded() && guarded(is_guarded).unwrap());
    }
}
