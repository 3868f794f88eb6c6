//! The EMA of the trained parameters.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use crate::nn::Parameters;

/// An exponential moving average of parameters, with the ramp of diffusers' `EMAModel`: update `n`, counted from 0, keeps
/// `min(decay, (1 + n) / (10 + n))` of the average; the first copies the parameters.
#[derive(Clone, Debug)]
pub struct Ema {
    decay: f64,
    updates: u64,
    means: BTreeMap<String, Tensor<1>>,
    /// The device of the averages; `None` is that of the parameters.
    home: Option<Device>,
}

impl Ema {
    /// An empty EMA with this `decay`, such as 0.9999.
    pub fn new(decay: f64) -> Self {
        Self { decay, updates: 0, means: BTreeMap::new(), home: None }
    }

    /// Resumes from the averages `means` after so many updates.
    pub fn restore(decay: f64, updates: u64, means: BTreeMap<String, Tensor<1>>) -> Self {
        Self { decay, updates, means, home: None }
    }

    /// The same with the averages stored and computed on the device `home`. Parameters are copied there one tensor at a time.
    pub fn at(mut self, home: Device) -> Self {
        self.means.values_mut().for_each(|mean| *mean = mean.clone().to_device(&home));
        Self { home: Some(home), ..self }
    }

    /// A parameter's values on the device of the averages.
    pub fn beside(&self, values: Tensor<1>) -> Tensor<1> {
        match &self.home {
            Some(home) => values.to_device(home),
            None => values,
        }
    }

    /// Updates the averages with the parameters after a step.
    pub fn update(&mut self, parameters: &mut impl Parameters) {
        let n = self.updates as f64;
        self.updates += 1;
        let keep = if n == 0.0 { 0.0 } else { self.decay.min((1.0 + n) / (10.0 + n)) };
        parameters.parameters("", &mut |name, parameter| {
            let value = self.beside(parameter.flat());
            let mean = match self.means.remove(name) {
                Some(mean) if keep > 0.0 => mean.clone() + (value - mean) * (1.0 - keep),
                _ => value,
            };
            self.means.insert(name.into(), mean);
        });
    }

    /// The averages by the names of the parameters, each as one row.
    pub fn means(&self) -> &BTreeMap<String, Tensor<1>> {
        &self.means
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::Parameter;

    struct One(Tensor<1>);

    impl Parameters for One {
        fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
            visit("x", Parameter::Vector(&mut self.0));
        }
    }

    #[test]
    fn the_decay_ramps_up_from_a_copy() {
        let mut ema = Ema::new(0.25);
        let mut mean = |value: f32| {
            ema.update(&mut One(Tensor::from_floats([value], &Device::flex())));
            ema.means()["x"].clone().into_scalar::<f32>()
        };
        assert_eq!(mean(4.0), 4.0);
        // (1 + 1) / (10 + 1) of 4, the rest of 0.
        assert!((mean(0.0) - 4.0 * 2.0 / 11.0).abs() < 1e-6);
        // 3 / 12 is the most that is kept here.
        let before = 4.0 * 2.0 / 11.0;
        assert!((mean(0.0) - before * 0.25).abs() < 1e-6);
        assert!((mean(0.0) - before * 0.0625).abs() < 1e-6);
    }
}
