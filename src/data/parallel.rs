//! A parallel map over many items.

use std::{
    num::NonZero,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
};

use crate::error::Result;

/// Runs `work` on every item on several threads, and `collect` on this one, in order of completion. At most one result per thread
/// waits, so memory stays bounded however slow `collect` is.
///
/// The threads do not belong to the backend's pool, because a task that waits there would block the arithmetic of `collect`.
///
/// # Errors
/// The first error of `collect`; the threads then stop after their current item.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut collect: impl FnMut(&T, R) -> Result<()>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(items.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, results) = sync_channel(threads);
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                while let Some((i, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
                {
                    if sender.send((i, work(item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        results.into_iter().try_for_each(|(i, result)| collect(&items[i], result))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn parallel_work_reaches_everything_once_and_stops_at_an_error() {
        let items: Vec<usize> = (0..100).collect();
        let mut seen = vec![0; 100];
        in_parallel(
            &items,
            |i| i * 2,
            |&i, twice| {
                assert_eq!(twice, i * 2);
                seen[i] += 1;
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, vec![1; 100]);
        let stop = in_parallel(&items, |_| (), |_, ()| Err(Error::setting("a", "b")));
        assert!(stop.is_err());
        in_parallel(&[] as &[usize], |_| (), |_, ()| Ok(())).unwrap();
    }
}
