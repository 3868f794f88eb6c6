//! Batches read ahead of their use.

use std::sync::{
    Arc,
    mpsc::{Receiver, sync_channel},
};

use super::{BatchOrder, HostBatch, LatentDataset};
use crate::error::Result;

/// A reader of the batches of a plan, on its own thread, into host memory. It ends after an error; dropping it ends the thread.
#[derive(Debug)]
pub struct Prefetch(Receiver<Result<HostBatch>>);

impl Prefetch {
    /// Starts reading at `micro_batch`, at most `ahead` batches ahead.
    pub fn start(dataset: Arc<LatentDataset>, plan: BatchOrder, micro_batch: u64, ahead: usize) -> Self {
        let (sender, batches) = sync_channel(ahead);
        std::thread::spawn(move || {
            for (number, samples) in (micro_batch..).zip(plan.starting_at(micro_batch)) {
                let batch = dataset.read(&samples, &plan.dropped(number, samples.len()));
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Self(batches)
    }
}

impl Iterator for Prefetch {
    type Item = Result<HostBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.recv().ok()
    }
}
