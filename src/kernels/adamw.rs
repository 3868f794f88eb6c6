//! The optimizer's update, in one pass over the parameters.

use burn::tensor::Tensor;

use super::{composed, cpu, dispatch::by_way, formulas::AdamWFactors, operation::RawTensor};

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019), with the semantics of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, the moving average of the gradient.
    pub beta1: f64,
    /// Decay of the second moment, the moving average of the squared gradient.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: each step shrinks the parameter by this times the learning rate.
    pub weight_decay: f64,
    /// The number of this step, from 1, for bias correction: the moments start at zero.
    pub step: u64,
}

impl AdamW {
    fn factors(&self) -> AdamWFactors {
        let &Self { learning_rate, beta1, beta2, epsilon, weight_decay, step } = self;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        AdamWFactors {
            keep: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / correction(beta1),
            root: correction(beta2).sqrt(),
            beta1,
            beta2,
            epsilon,
        }
    }
}

/// A parameter, its gradient and its moments: off-tape f32 tensors of one shape.
#[derive(Clone, Debug)]
pub struct Update {
    /// The parameter, which is updated in place if nothing else holds it.
    pub parameter: Tensor<1>,
    /// Its gradient.
    pub gradient: Tensor<1>,
    /// The moving averages of the gradient and of its square; in place as well.
    pub moments: [Tensor<1>; 2],
}

/// One update of parameters from their gradients times `scale` `[1]`, and of their moments `m` and `v`; returns parameters and
/// moments, in order:
/// `p ← p·(1 - lr·decay) - lr/(1-β₁ᵗ)·m / (√v/√(1-β₂ᵗ) + ε)`.
pub fn adamw(updates: Vec<Update>, scale: &Tensor<1>, options: &AdamW) -> Vec<(Tensor<1>, [Tensor<1>; 2])> {
    let factors = options.factors();
    let tensors = updates
        .into_iter()
        .map(|Update { parameter, gradient, moments: [m, v] }| [parameter, gradient, m, v].map(Tensor::into_dispatch));
    let updated: Vec<[RawTensor; 3]> = by_way!([scale.clone().into_dispatch()],
        Cuda([scale]) => cuda::adamw::update(tensors.map(cuda::tensors).collect(), scale, factors.in_f32()),
        Composed([scale]) => {
            let scale = Tensor::<1>::from_dispatch(scale);
            tensors.map(|tensors| alone(tensors, scale.clone(), &factors)).collect()
        },
    );
    let typed = |updated: [RawTensor; 3]| {
        let [parameter, m, v] = updated.map(Tensor::from_dispatch);
        (parameter, [m, v])
    };
    updated.into_iter().map(typed).collect()
}

/// The update of one parameter: of `[parameter, gradient, m, v]`.
fn alone([parameter, gradient, m, v]: [RawTensor; 4], scale: Tensor<1>, factors: &AdamWFactors) -> [RawTensor; 3] {
    let gradient = (Tensor::<1>::from_dispatch(gradient) * scale).into_dispatch();
    by_way!([parameter, gradient, m, v],
        Cpu(inputs) => cpu::adamw::update(inputs, factors.in_f32()),
        Composed(inputs) => {
            composed::adamw::update(inputs.map(Tensor::<1>::from_dispatch), factors).map(Tensor::into_dispatch)
        },
    )
}

/// The sum of the squares of all elements of all `rows`, of which there must be at least one. Off-tape tensors of one dtype.
pub fn sum_of_squares(rows: impl IntoIterator<Item = Tensor<1>>) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    let rows = match super::cuda::all(rows.into_iter().map(Tensor::into_dispatch).collect()) {
        Ok(rows) => return super::cuda::adamw::sum_of_squares(rows),
        Err(rows) => rows.into_iter().map(Tensor::<1>::from_dispatch),
    };
    rows.into_iter().map(|row| row.square().sum()).reduce(|a, b| a + b).expect("at least one row")
}
