//! Repeated calls of an operation.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use half::bf16;

use super::{
    Case, Operation, Variant,
    measure::{guarded, timed},
    operation::Function,
    subject::normal,
};
use crate::{
    device::{self, Dtype},
    kernels, memory,
};

/// A prepared call.
type Call = Box<dyn FnOnce()>;

impl Operation {
    /// Measures the operation of a case: means over as many calls as fill 20 ms, but at most 1000, or 64 of a backward pass, on
    /// alternating inputs, so that no cache holds them.
    pub(super) fn measure(self, case: &Case, device: &Device) -> Variant {
        guarded("kiln", device, || {
            let pass = self.pass(case, device);
            let (_, first) = timed(device, pass(0))?;
            let (_, once) = timed(device, pass(1))?;
            // A backward pass needs its own forward pass, and an upload its data, prepared before.
            let made = if self.function == Function::Upload { case.shape.iter().product::<usize>() * 4 } else { 1 };
            let most = if self.backward { 64 } else { (2_000_000_000 / made).clamp(1, 1000) };
            let calls = (0.02 / once).ceil().clamp(1.0, most as f64) as usize;
            let watch = memory::Stage::watch(case.to_string(), device);
            let mut seconds = Vec::new();
            for _ in 0..case.repeats {
                let ready: Vec<_> = (0..calls).map(&pass).collect();
                let ((), all) = timed(device, || ready.into_iter().for_each(|call| call()))?;
                seconds.push(all / calls as f64);
            }
            Ok(Variant::of(first, seconds, &watch.measure()))
        })
    }

    /// Prepares call number `n`.
    fn pass(self, case: &Case, device: &Device) -> Box<dyn Fn(usize) -> Call> {
        let shape = case.shape.clone();
        let count: usize = shape.iter().product();
        // All sets together have at least four times the second-level cache of an H200 (60 MB). An operation moves at most four times
        // its inputs.
        let bytes = self.work(&shape, case.dtype.size()).bytes as usize / 4;
        let sets = match device::is_cpu(device) {
            true => 2,
            false => 240_000_000usize.div_ceil(bytes.max(1)).clamp(1, 63) + 1,
        };
        let dtype = if self.function == Function::Adamw { FloatDType::F32 } else { case.float() };
        let numbers = |name: &str, count| normal::<1>(name, [count], device, dtype);
        match self.function {
            Function::Upload => {
                let (device, half) = (device.clone(), case.dtype == Dtype::Bf16);
                Box::new(move |_| {
                    let data = if half {
                        TensorData::new(vec![bf16::ONE; count], [count])
                    } else {
                        TensorData::new(vec![1f32; count], [count])
                    };
                    let (device, dtype) = (device.clone(), data.dtype);
                    Box::new(move || drop(Tensor::<1>::from_data(data, (&device, dtype))))
                })
            }
            Function::Adamw => {
                let [p, g, m] = ["p", "g", "m"].map(|name| numbers(name, count));
                let v = m.clone().square();
                let options = kernels::AdamW {
                    learning_rate: 1e-4,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 1e-4,
                    step: 10,
                };
                let scale = Tensor::ones([1], device);
                let state = std::rc::Rc::new(std::cell::RefCell::new(vec![(p, [m, v])]));
                Box::new(move |_| {
                    let (state, g, scale) = (state.clone(), g.clone(), scale.clone());
                    Box::new(move || {
                        let updates = state.take().into_iter().map(|(parameter, moments)| kernels::Update {
                            parameter,
                            gradient: g.clone(),
                            moments,
                        });
                        state.replace(kernels::adamw(updates.collect(), &scale, &options));
                    })
                })
            }
            function => {
                let inputs: Vec<Vec<Tensor<4>>> = (0..sets)
                    .map(|set| function.inputs(&shape, &|name, count| numbers(&format!("{name}{set}"), count)))
                    .collect();
                let backward = self.backward;
                Box::new(move |n| {
                    let inputs = inputs[n % inputs.len()].clone();
                    if !backward {
                        return Box::new(move || drop(function.run(inputs)));
                    }
                    let tracked = |(i, input): (usize, Tensor<4>)| {
                        let input = Tensor::from_inner(input);
                        if function.tracked().contains(&i) { input.require_grad() } else { input }
                    };
                    let output = function.run(inputs.into_iter().enumerate().map(tracked).collect());
                    let gradient = output.clone().inner();
                    let scalar = kernels::vjp_seed(output, gradient);
                    Box::new(move || drop(scalar.backward()))
                })
            }
        }
    }
}
