//! Random weights.

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};

use super::kept::keep;
use crate::rng::{Purpose, Seed};

/// The distribution of random weights.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spread {
    /// Random vectors, too, so that every computation affects the result.
    Busy,
    /// The initial weights of a training; matrices whose names satisfy the predicate are zero.
    Calm(fn(&str) -> bool),
}

impl Spread {
    /// Standard deviation and mean of a tensor's values.
    fn of(self, name: &str, shape: &[usize]) -> (f32, f32) {
        let vector = match self {
            Self::Busy => 0.1,
            Self::Calm(_) => 0.0,
        };
        match shape {
            [_] if name.ends_with("weight") => (vector, 1.0),
            [_] => (vector, 0.0),
            [_, ..] if matches!(self, Self::Calm(are_zero) if are_zero(name)) => (0.0, 0.0),
            [_, fan_in @ ..] => (1.0 / (fan_in.iter().product::<usize>() as f32).sqrt(), 0.0),
            [] => (1.0, 0.0),
        }
    }
}

/// A tensor drawn on the host, in f32.
pub(super) fn on_host(seed: Seed, spread: Spread, name: &str, shape: &[usize]) -> TensorData {
    let mut values = seed.named(Purpose::Weights, name).normal(shape.iter().product());
    let (gain, offset) = spread.of(name, shape);
    values.iter_mut().for_each(|v| *v = *v * gain + offset);
    TensorData::new(values, shape)
}

/// A tensor drawn on the device.
pub(super) fn on_device<const D: usize>(
    device: &Device,
    seed: Seed,
    name: &str,
    shape: [usize; D],
    dtype: DType,
) -> Tensor<D> {
    let (gain, offset) = Spread::Busy.of(name, &shape);
    let distribution = Distribution::Normal(f64::from(offset), f64::from(gain));
    device.seed(seed.derive(name).0);
    keep(device, (), |()| Tensor::random(shape, distribution, (device, dtype)))
}
