//! Stages: sections of the program after which memory is released.

use std::time::Instant;

use burn::tensor::Device;

use super::{DeviceUsage, Usage, device_usage, exhausted, mib, peak::PeakTracker, release, usage};

/// Marks a stage such as `validation`: logs the memory in use on entering; on leaving, synchronizes with the device,
/// releases what is free and logs again, with the peak in between. Stages may be nested.
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
    tracker: PeakTracker,
    started: Instant,
    /// Observe only: release nothing, and log at debug level.
    detail: bool,
}

/// Time and memory of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Its duration in seconds.
    pub seconds: f64,
    /// Host memory in use when it began, in bytes.
    pub before: u64,
    /// Host memory in use now, or after it, in bytes.
    pub after: u64,
    /// Peak host memory during it, in bytes.
    pub peak: u64,
    /// GPU memory after it; `None` on the CPU.
    pub device: Option<DeviceUsage>,
    /// The peak that the GPU's pools held during it, in bytes; 0 on the CPU.
    pub device_peak: u64,
}

impl Measured {
    /// Peak host memory during it beside what was in use when it began, in bytes.
    pub fn taken(&self) -> u64 {
        self.peak.saturating_sub(self.before)
    }
}

impl Stage {
    /// Begins the stage `name`, whose tensors are on `device`.
    pub fn enter(name: impl Into<String>, device: &Device) -> Self {
        Self::begin(name.into(), device, false)
    }

    /// Begins a stage that only observes: it releases nothing at its end, and logs at debug level.
    pub fn watch(name: impl Into<String>, device: &Device) -> Self {
        Self::begin(name.into(), device, true)
    }

    /// [`watch`](Self::watch) for a section such as one step; `None`, at no cost, unless debug messages are logged.
    pub fn detail(name: impl Into<String>, device: &Device) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self::watch(name, device))
    }

    fn begin(name: String, device: &Device, detail: bool) -> Self {
        exhausted::begin(&name);
        let before = usage(device);
        tracing::debug!("{name}: begins with {:.0} MiB in use", before.resident_mib());
        let tracker = PeakTracker::start(device);
        Self { name, device: device.clone(), before, tracker, started: Instant::now(), detail }
    }

    /// Time and memory until now. Synchronizes with the device.
    pub fn measure(&self) -> Measured {
        let after = usage(&self.device).resident;
        let (seconds, peak) = (self.started.elapsed().as_secs_f64(), self.tracker.peak(&self.device));
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
