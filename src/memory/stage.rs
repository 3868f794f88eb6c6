//! A stretch of the program with an end at which memory goes back.

use std::time::Instant;

use burn::tensor::Device;

use super::{DeviceUsage, Usage, device_usage, exhausted, mib, peak::Watch, release, usage};

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
    /// On the GPU after it, in bytes; `None` on the CPU.
    pub device: Option<DeviceUsage>,
    /// The most that the GPU's pools held during it, in bytes; 0 on the CPU.
    pub device_peak: u64,
}

impl Stage {
    /// Begins the stage `name`, whose tensors are on `device`.
    pub fn enter(name: impl Into<String>, device: &Device) -> Self {
        Self::begin(name.into(), device, false)
    }

    /// Only looks at a stretch: gives nothing back after it, and logs it among the details.
    pub fn watch(name: impl Into<String>, device: &Device) -> Self {
        Self::begin(name.into(), device, true)
    }

    /// Looks at a stretch such as one step, for the log of details: `None`, and no cost, where they are not logged.
    pub fn detail(name: impl Into<String>, device: &Device) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self::watch(name, device))
    }

    fn begin(name: String, device: &Device, detail: bool) -> Self {
        exhausted::begin(&name);
        let before = usage(device);
        tracing::debug!("{name}: begins with {:.0} MiB in use", before.resident_mib());
        let watch = Watch::start(device);
        Self { name, device: device.clone(), before, watch, started: Instant::now(), detail }
    }

    /// What it took until now. Waits for the device.
    pub fn measure(&self) -> Measured {
        let after = usage(&self.device).resident;
        let (seconds, peak) = (self.started.elapsed().as_secs_f64(), self.watch.peak(&self.device));
        let device = device_usage(&self.device);
        Measured { seconds, before: self.before.resident, after, peak: peak.host, device, device_peak: peak.device }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.detail {
            release(&self.device);
        }
        let Measured { seconds, before, after, peak, device, device_peak } = self.measure();
        let [before, after, peak] = [before, after, peak].map(mib);
        let mut text = format!("{seconds:.1} s, {after:.0} MiB in use ({before:.0} before, {peak:.0} at the peak)");
        if let Some(DeviceUsage { in_use, held }) = device {
            let [in_use, held, peak] = [in_use, held, device_peak].map(mib);
            text += &format!("; on the device {in_use:.0} MiB in use, {held:.0} held ({peak:.0} at the peak)");
        }
        match self.detail {
            true => tracing::debug!("{}: {text}", self.name),
            false => tracing::info!("{}: {text}", self.name),
        }
    }
}
