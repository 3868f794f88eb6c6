//! Panics of work that is expected to fail now and then: caught, on whatever thread they happen, and told as text.

use std::{
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

/// The result of `f`, `None` if it panics, and the messages of all panics meanwhile, on any thread, at most three of them.
/// Nothing is printed.
pub fn unpanicked<T>(f: impl FnOnce() -> T) -> (Option<T>, Option<String>) {
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
