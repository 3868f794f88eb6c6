//! Activations. Their backward passes keep the input and nothing else.

use burn::tensor::{FloatDType, Tensor, activation};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu,
    operation::{Operation, Plain, apply},
    simd::{fill, sigmoid},
};

/// `gelu(x)` in its tanh form: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (FLUX's and T5's "gelu_new").
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(Activation::<D>(Kind::GeluTanh), [x.into_dispatch()])
}

/// `silu(x) = x·σ(x)` with the logistic function σ, also called swish.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(Activation::<D>(Kind::Silu), [x.into_dispatch()])
}

/// An activation of a tensor with `D` axes.
#[derive(Clone, Copy, Debug)]
struct Activation<const D: usize>(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    GeluTanh,
    Silu,
}

/// √(2/π).
pub(super) const ROOT: f32 = 0.797_884_6;
pub(super) const CUBIC: f32 = 0.044715;

/// `½(1 + tanh u) = σ(2u)`: the tanh form needs no tanh, and keeps its precision where tanh is near -1.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * sigmoid(2.0 * ROOT * (CUBIC * x * x).mul_add(x, x)).0
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (s, t) = sigmoid(2.0 * ROOT * (CUBIC * x * x).mul_add(x, x));
    (x * s * t).mul_add(2.0 * ROOT * (3.0 * CUBIC * x).mul_add(x, 1.0), s)
}

/// The derivative of [`silu`].
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let (s, t) = sigmoid(x);
    (x * s).mul_add(t, s)
}

/// `f(x, g)` of each pair of numbers.
fn map(x: &[f32], g: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    // Rows of a length of our choice: an activation does not care about the shape.
    const ROW: usize = 1024;
    cpu::build(
        x.len(),
        ROW,
        #[inline(always)]
        |row, place| {
            let (start, end) = (row * ROW, row * ROW + place.len());
            fill(
                place,
                [&x[start..end], &g[start..end]],
                #[inline(always)]
                |[x, g]| f(x, g),
            );
        },
    )
}

impl<const D: usize> Operation<1> for Activation<D> {
    type Saved = Plain;

    fn forward(&self, [x]: [Plain; 1]) -> (Plain, Plain) {
        let output = match cpu::floats([x.clone()]) {
            Ok([x]) => {
                let x = cpu::in_order(x);
                let numbers = cpu::numbers(&x);
                let y = match self.0 {
                    Kind::GeluTanh => map(
                        numbers,
                        numbers,
                        #[inline(always)]
                        |x, _| gelu(x),
                    ),
                    Kind::Silu => map(
                        numbers,
                        numbers,
                        #[inline(always)]
                        |x, _| x * sigmoid(x).0,
                    ),
                };
                cpu::plain(cpu::tensor::<D>(y, cpu::dims(&x)))
            }
            #[cfg(feature = "cuda")]
            Err(input) if cuda::takes(&input) => cuda::activation::forward(self.0, input),
            Err([x]) => {
                let x = Tensor::<D>::from_dispatch(x);
                match self.0 {
                    Kind::GeluTanh => activation::gelu_approximate(x).into_dispatch(),
                    Kind::Silu => activation::silu(x).into_dispatch(),
                }
            }
        };
        (output, x)
    }

    fn backward(self, x: Plain, gradient: Plain, _: [bool; 1]) -> [Option<Plain>; 1] {
        [Some(match cpu::floats([x, gradient]) {
            Ok(both) => {
                let [x, g] = both.map(cpu::in_order);
                let dx = match self.0 {
                    Kind::GeluTanh => map(
                        cpu::numbers(&x),
                        cpu::numbers(&g),
                        #[inline(always)]
                        |x, g| g * gelu_slope(x),
                    ),
                    Kind::Silu => map(
                        cpu::numbers(&x),
                        cpu::numbers(&g),
                        #[inline(always)]
                        |x, g| g * silu_slope(x),
                    ),
                };
                cpu::plain(cpu::tensor::<D>(dx, cpu::dims(&x)))
            }
            #[cfg(feature = "cuda")]
            Err(both) if cuda::takes(&both) => cuda::activation::backward(self.0, both),
            Err([x, g]) => {
                let [x, g]: [Tensor<D>; 2] = [x, g].map(Tensor::from_dispatch);
                let dtype: FloatDType = x.dtype().into();
                let x = x.cast(FloatDType::F32);
                let (argument, steep) = match self.0 {
                    Kind::GeluTanh => {
                        let square = x.clone().square();
                        let argument = (square.clone() * CUBIC + 1.0) * x.clone() * (2.0 * ROOT);
                        (argument, (square * (3.0 * CUBIC) + 1.0) * (2.0 * ROOT))
                    }
                    Kind::Silu => (x.clone(), x.ones_like()),
                };
                let s = activation::sigmoid(argument);
                let slope = s.clone() + x * s.clone() * (-s + 1.0) * steep;
                (slope.cast(dtype) * g).into_dispatch()
            }
        })]
    }
}
