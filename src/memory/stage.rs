//! A stretch of the program with an end at which memory goes back.

use std::time::Instant;

use burn::tensor::Device;

use super::{Usage, mib, peak::Watch, release, usage};

/// Marks a stage such as `validation`: logs the memory in use on entering; on leaving, waits for the device, releases
/// what is free and logs again, with the most that was in use meanwhile. Stages may lie within each other.
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
    watch: Watch,
    started: Instant,
    /// Only looks on: releases nothing, and logs for those who want to know more.
    detail: bool,
}

/// What a stage took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How long it took.
    pub seconds: f64,
    /// In use when it began, in bytes.
    pub before: u64,
    /// In use after it, in bytes.
    pub after: u64,
    /// The most that was in use during it, in bytes.
    pub peak: u64,
}

impl Stage {
    /// Begins the stage `name`, whose tensors are on `device`.
    pub fn enter(name: impl Into<String>, device: &Device) -> Self {
        Self::begin(name.into(), device, false)
    }

    /// Looks at a stretch such as one step, for the log of details: `None`, and no cost, where they are not logged.
    pub fn detail(name: impl Into<String>, device: &Device) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self::begin(name.into(), device, true))
    }

    fn begin(name: String, device: &Device, detail: bool) -> Self {
        let before = usage(device);
        tracing::debug!("{name}: begins with {:.0} MiB in use", before.resident_mib());
        Self { name, device: device.clone(), before, watch: Watch::start(), started: Instant::now(), detail }
    }

    /// What it took until now. Waits for the device.
    pub fn measure(&self) -> Measured {
        let after = usage(&self.device).resident;
        let seconds = self.started.elapsed().as_secs_f64();
        Measured { seconds, before: self.before.resident, after, peak: self.watch.peak() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.detail {
            release(&self.device);
        }
        let Measured { seconds, before, after, peak } = self.measure();
        let [before, after, peak] = [before, after, peak].map(mib);
        let text = format!("{seconds:.1} s, {after:.0} MiB in use ({before:.0} before, {peak:.0} at the peak)");
        match self.detail {
            true => tracing::debug!("{}: {text}", self.name),
            false => tracing::info!("{}: {text}", self.name),
        }
    }
}
