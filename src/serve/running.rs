//! The engine's thread, which ends with the last handle to the server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use burn::tensor::Device;

use super::shared::Shared;
use crate::disk::FolderLock;

/// What all handles to a server share.
pub(super) struct Running {
    pub shared: Arc<Shared>,
    pub device: Device,
    engine: Mutex<Option<JoinHandle<()>>>,
    /// The lock on the state folder.
    _lock: FolderLock,
}

impl Running {
    pub fn new(shared: Arc<Shared>, device: &Device, engine: JoinHandle<()>, lock: FolderLock) -> Self {
        Self { shared, device: device.clone(), engine: Mutex::new(Some(engine)), _lock: lock }
    }

    /// See [`Service::stop`](super::Service::stop).
    pub fn stop(&self, deadline: Duration) {
        let stop_at = Instant::now() + deadline;
        self.shared.change(|state| {
            state.stop_at = Some(state.stop_at.map_or(stop_at, |before| before.min(stop_at)));
        });
        // A step cannot be interrupted. If it takes longer, the journal still lists its jobs as running, and they are restarted.
        self.shared.wait(deadline + Duration::from_secs(2), |state| state.is_over);
        let thread = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.shared.state().is_over
            && let Some(thread) = thread
        {
            _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
