//! Weights that are drawn, not read.

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};

use super::keep;
use crate::rng::{Purpose, Seed};

/// How far random numbers of a tensor are spread, and about which mean.
fn spread(name: &str, shape: &[usize]) -> (f32, f32) {
    match shape {
        [_] if name.ends_with("weight") => (0.1, 1.0),
        [_] => (0.1, 0.0),
        [_, fan_in @ ..] => (1.0 / (fan_in.iter().product::<usize>() as f32).sqrt(), 0.0),
        [] => (1.0, 0.0),
    }
}

/// Drawn on the host.
pub(super) fn on_host(seed: Seed, name: &str, shape: &[usize]) -> TensorData {
    let mut values = seed.named(Purpose::Weights, name).normal(shape.iter().product());
    let (gain, offset) = spread(name, shape);
    values.iter_mut().for_each(|v| *v = *v * gain + offset);
    TensorData::new(values, shape)
}

/// Drawn on the device.
pub(super) fn on_device<const D: usize>(
    device: &Device,
    seed: Seed,
    name: &str,
    shape: [usize; D],
    dtype: DType,
) -> Tensor<D> {
    let (gain, offset) = spread(name, &shape);
    let distribution = Distribution::Normal(f64::from(offset), f64::from(gain));
    device.seed(seed.derive(name).0);
    keep(device, (), |()| Tensor::random(shape, distribution, (device, dtype)))
}
