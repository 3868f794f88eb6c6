//! The optimizer's update, one pass over the numbers.

use burn::tensor::Tensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{cpu, simd::vectorized};

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019), with the semantics of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Of this step.
    pub learning_rate: f64,
    /// How much of the mean gradient is kept from step to step.
    pub beta1: f64,
    /// How much of the mean squared gradient is kept from step to step.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Share of the parameter taken away per step, times the learning rate.
    pub weight_decay: f64,
    /// The number of this step, from 1: the means start at zero and are scaled up for it.
    pub step: u64,
}

/// The factors of the update, from the steps' number and rates.
struct Factors {
    keep: f64,
    rate: f64,
    root: f64,
}

impl AdamW {
    fn factors(&self) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        Factors {
            keep: 1.0 - self.learning_rate * self.weight_decay,
            rate: self.learning_rate / correction(self.beta1),
            root: correction(self.beta2).sqrt(),
        }
    }
}

/// One update of `parameter` from its gradient and the running means `m` of the gradient and `v` of its square; returns all
/// three. Plain f32 tensors of one shape:
/// `p ← p·(1 - lr·decay) - lr/(1-β₁ᵗ)·m / (√v/√(1-β₂ᵗ) + ε)`.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    m: Tensor<D>,
    v: Tensor<D>,
    options: &AdamW,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let factors = options.factors();
    let inputs = [parameter, gradient, m, v].map(Tensor::into_dispatch);
    let outputs = match cpu::floats(inputs) {
        Ok(inputs) => {
            let [parameter, gradient, m, v] = inputs.map(cpu::in_order);
            let mut updated = [parameter, m, v].map(cpu::exactly);
            let [p, m, v] = updated.each_mut().map(|t| t.storage_mut::<f32>());
            update(p, cpu::numbers(&gradient), m, v, options, &factors);
            updated.map(cpu::plain).map(Tensor::from_dispatch)
        }
        #[cfg(feature = "cuda")]
        Err(inputs) if cuda::takes(&inputs) => {
            let AdamW { beta1, beta2, epsilon, .. } = *options;
            let Factors { keep, rate, root } = factors;
            let factors = [keep, rate, root, 1.0 - beta1, beta2, 1.0 - beta2, epsilon].map(|factor| factor as f32);
            cuda::adamw::update(inputs, factors).map(Tensor::from_dispatch)
        }
        Err(inputs) => {
            let [p, g, m, v]: [Tensor<D>; 4] = inputs.map(Tensor::from_dispatch);
            let m = m * options.beta1 + g.clone() * (1.0 - options.beta1);
            let v = v * options.beta2 + g.square() * (1.0 - options.beta2);
            let denominator = v.clone().sqrt() / factors.root + options.epsilon;
            [p * factors.keep - m.clone() / denominator * factors.rate, m, v]
        }
    };
    outputs.into()
}

/// The sum of the squares of all numbers of all `rows`, of which there is at least one. Plain tensors of one type.
pub fn sum_of_squares(rows: impl IntoIterator<Item = Tensor<1>>) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    let rows = {
        let rows: Vec<_> = rows.into_iter().map(|row| [row.into_dispatch()]).collect();
        if rows.iter().all(cuda::takes) {
            return cuda::adamw::sum_of_squares(rows);
        }
        rows.into_iter().map(|[row]| Tensor::<1>::from_dispatch(row))
    };
    rows.into_iter().map(|row| row.square().sum()).reduce(|a, b| a + b).expect("at least one row")
}

fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], options: &AdamW, factors: &Factors) {
    let [keep, rate, root] = [factors.keep, factors.rate, factors.root].map(|f| f as f32);
    let [fresh1, beta2, fresh2, epsilon] =
        [1.0 - options.beta1, options.beta2, 1.0 - options.beta2, options.epsilon].map(|f| f as f32);
    const PIECE: usize = 16 * 1024;
    let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
    pieces.zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE)).for_each(|(((p, g), m), v)| {
        vectorized(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    *m += (g - *m) * fresh1;
                    *v = *v * beta2 + g * g * fresh2;
                    *p = *p * keep - rate * (*m / (v.sqrt() / root + epsilon));
                }
            },
        );
    });
}
