//! Time and memory of one measured run, with the device synchronized before and after.

use std::time::Instant;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    memory::{self, Stage},
    panics::unpanicked,
};

/// A prepared run that can be repeated; it may return a value `[1]` that must be finite.
pub type Run = Box<dyn FnMut() -> Result<Option<Tensor<1>>>>;

/// The measurement of one variant of a case, by kiln or by the peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variant {
    /// The name of the variant.
    pub name: String,
    /// The seconds of each run after the first.
    pub seconds: Vec<f64>,
    /// The seconds of the first run, which compiles and tunes new kernels.
    pub first_seconds: Option<f64>,
    /// Peak device memory: of kiln's pools, or of the peer's tensors; none on the CPU.
    pub device_peak_bytes: Option<u64>,
    /// Peak host memory.
    pub host_peak_bytes: Option<u64>,
    /// The error, if it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Variant {
    /// The first run, the others, and the peak memory.
    pub(super) fn of(first: f64, seconds: Vec<f64>, measured: &memory::Measured) -> Self {
        Self {
            seconds,
            first_seconds: Some(first),
            device_peak_bytes: measured.device.map(|_| measured.device_peak),
            host_peak_bytes: Some(measured.peak),
            ..Self::default()
        }
    }

    /// The median of [`seconds`](Self::seconds).
    pub fn median(&self) -> Option<f64> {
        median(&self.seconds)
    }

    /// Peak memory where its tensors are: on the device, or on the host for the CPU.
    pub fn memory(&self) -> Option<u64> {
        self.device_peak_bytes.or(self.host_peak_bytes)
    }
}

/// Prepares a run and measures `repeats` runs after the first. Any failure, even a panic, becomes the variant's error; all memory is
/// released.
pub(super) fn measure(name: &str, device: &Device, repeats: usize, prepare: impl FnOnce() -> Result<Run>) -> Variant {
    guarded(name, device, || {
        let mut run = prepare()?;
        let mut once = || -> Result<f64> {
            let (number, seconds) = timed(device, &mut run)?;
            match number?.map(|number| number.into_scalar::<f32>()) {
                Some(number) if !number.is_finite() => Err(problem(format!("the result is {number}"))),
                _ => Ok(seconds),
            }
        };
        let (times, measured) = watched(name, device, || {
            let first = once()?;
            Ok((first, (0..repeats).map(|_| once()).collect::<Result<_>>()?))
        });
        let (first, seconds) = times?;
        Ok(Variant::of(first, seconds, &measured))
    })
}

/// The result of `run` with its time and memory. Free memory is released before it starts.
pub fn watched<T>(name: &str, device: &Device, run: impl FnOnce() -> T) -> (T, memory::Measured) {
    memory::release(device);
    let stage = Stage::watch(name, device);
    let output = run();
    (output, stage.measure())
}

/// The median of some times, the upper one of an even number; `None` if there are none.
pub fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The result of `measurement` as the variant `name`, or its error, including panics on other threads, such as the device's.
pub(super) fn guarded(name: &str, device: &Device, measurement: impl FnOnce() -> Result<Variant>) -> Variant {
    let (measured, panics) = unpanicked(measurement);
    memory::release(device);
    let failed = |text: String| {
        let text = text.lines().next().unwrap_or_default().chars().take(600).collect();
        Variant { error: Some(text), ..Variant::default() }
    };
    let variant = match (measured, panics) {
        (Some(Ok(variant)), None) => variant,
        (Some(Ok(variant)), Some(panics)) => {
            tracing::warn!("{name} went on after it {panics}");
            variant
        }
        (Some(Err(error)), panics) => failed(match panics {
            Some(panics) => format!("{error}; {panics}"),
            None => error.to_string(),
        }),
        (None, panics) => failed(panics.unwrap_or_else(|| "a panic without a message".into())),
    };
    Variant { name: name.into(), ..variant }
}

/// The result of `run` and its seconds, until the device has finished.
///
/// # Errors
/// The device failed, for example for lack of memory.
pub(super) fn timed<T>(device: &Device, run: impl FnOnce() -> T) -> Result<(T, f64)> {
    let wait = || device.sync().map_err(|e| problem(e.to_string()));
    wait()?;
    let started = Instant::now();
    let output = run();
    wait()?;
    Ok((output, started.elapsed().as_secs_f64()))
}

fn problem(text: String) -> Error {
    Error::setting("bench", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_timed_and_the_first_is_kept_apart() {
        let mut runs = 0;
        let prepare = || {
            Ok(Box::new(move || {
                runs += 1;
                Ok(Some(Tensor::full([1], runs as f32, &Device::flex())))
            }) as Run)
        };
        let variant = measure("kept", &Device::flex(), 3, prepare);
        assert_eq!((variant.seconds.len(), variant.error.clone()), (3, None));
        assert!(
            variant.first_seconds.is_some() && variant.host_peak_bytes.is_some() && variant.device_peak_bytes.is_none()
        );
        assert!(variant.median() > Some(0.0));
    }

    #[test]
    fn panics_errors_and_numbers_that_are_none_become_the_error_of_the_row() {
        let device = Device::flex();
        let error = |run: Run| measure("kept", &device, 1, || Ok(run)).error.unwrap();
        assert!(error(Box::new(|| panic!("no memory {}", 7))).contains("no memory 7"));
        assert!(error(Box::new(|| Ok(Some(Tensor::full([1], f32::NAN, &Device::flex()))))).contains("NaN"));
        let refused = measure("kept", &device, 1, || Err(Error::setting("lora.targets", "match nothing")));
        assert!(refused.error.unwrap().contains("match nothing"));
    }
}
