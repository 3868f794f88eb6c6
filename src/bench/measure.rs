//! Time and memory of one measured run, with the device synchronized before and after.

use std::time::Instant;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    memory::{self, Stage},
    panics::unpanicked,
};

/// Something made ready to be run again and again; may leave a number `[1]` that must be finite.
pub type Run = Box<dyn FnMut() -> Result<Option<Tensor<1>>>>;

/// What was measured of one way to do a case: by kiln, or as the peer says it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variant {
    /// Which way.
    pub name: String,
    /// Of each run after the first.
    pub seconds: Vec<f64>,
    /// Of the first run, which compiles and tunes kernels where this program has not done so before.
    pub first_seconds: Option<f64>,
    /// The most device memory: what kiln's pools held, or the peer's tensors took; none on the CPU.
    pub device_peak_bytes: Option<u64>,
    /// The most host memory.
    pub host_peak_bytes: Option<u64>,
    /// Why it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Variant {
    /// The first run, those after it, and the memory at the peak.
    pub(super) fn of(first: f64, seconds: Vec<f64>, measured: &memory::Measured) -> Self {
        Self {
            seconds,
            first_seconds: Some(first),
            device_peak_bytes: measured.device.map(|_| measured.device_peak),
            host_peak_bytes: Some(measured.peak),
            ..Self::default()
        }
    }

    /// The middle one of [`seconds`](Self::seconds).
    pub fn median(&self) -> Option<f64> {
        median(&self.seconds)
    }

    /// What it took where its tensors are: device memory, on the CPU host memory.
    pub fn memory(&self) -> Option<u64> {
        self.device_peak_bytes.or(self.host_peak_bytes)
    }
}

/// Makes a run ready and measures `repeats` runs after the first. Whatever goes wrong, a panic too, becomes the
/// variant's error; everything is given back.
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

/// What comes of `run`, and its time and memory; what is free is given back before it begins.
pub fn watched<T>(name: &str, device: &Device, run: impl FnOnce() -> T) -> (T, memory::Measured) {
    memory::release(device);
    let stage = Stage::watch(name, device);
    let output = run();
    (output, stage.measure())
}

/// The middle one of some times, or of the upper half where they are even; `None` if there are none.
pub fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// What `measurement` says under this `name`, or the error that it ended with: a panic on another thread, such as the
/// device's own, is part of it.
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

/// What comes of `run` and its seconds, until the device has done it.
///
/// # Errors
/// The device failed, such as for memory.
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
