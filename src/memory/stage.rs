//! A stretch of the program with an end at which memory goes back.

use std::time::Instant;

use burn::tensor::Device;

use super::{Usage, release, usage};

/// Marks a stage such as `validation`: logs the memory in use on entering; on leaving, waits for the device, releases
/// what is free and logs again.
///
/// ```
/// # let device = burn::tensor::Device::flex();
/// let _stage = kiln::memory::Stage::enter("validation", &device);
/// ```
#[must_use = "the stage ends when this is dropped"]
#[derive(Debug)]
pub struct Stage {
    name: String,
    device: Device,
    before: Usage,
    started: Instant,
}

impl Stage {
    /// Begins the stage `name`, whose tensors are on `device`.
    pub fn enter(name: impl Into<String>, device: &Device) -> Self {
        let (name, before) = (name.into(), usage(device));
        tracing::debug!("{name}: begins with {:.0} MiB in use", before.resident_mib());
        Self { name, device: device.clone(), before, started: Instant::now() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        release(&self.device);
        let after = usage(&self.device);
        tracing::info!(
            "{}: {:.1} s, {:.0} MiB in use ({:.0} before, {:.0} at the peak so far)",
            self.name,
            self.started.elapsed().as_secs_f64(),
            after.resident_mib(),
            self.before.resident_mib(),
            after.peak_mib(),
        );
    }
}
