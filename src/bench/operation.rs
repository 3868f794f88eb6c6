//! Single operations at the sizes of FLUX.1, for the roofline.

use std::{fmt, str::FromStr};

use burn::tensor::{FloatDType, Tensor};
use serde::{Serialize, Serializer};

use crate::kernels;

/// The kind of operation, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `[rows, in, out]`: a frozen linear layer with a bias.
    Linear,
    /// `[B, N, L, K]`, queries and keys alike.
    Attention,
    /// `[B, L, D]`.
    LayerNormModulate,
    /// `[B, L, N, K]`.
    RmsNormRope,
    /// `[B, L, D]`.
    GeluTanh,
    /// `[B, L, D]`.
    GatedAdd,
    /// `[count]`, f32.
    Adamw,
    /// `[count]`: host to device.
    Upload,
    /// `[count]`: every value is read and written once; the ceiling of operations bound by memory.
    Copy,
    /// `[n, n, n]`: a square product; the ceiling of operations bound by arithmetic.
    MatmulCeiling,
}

const NAMES: [(&str, Function); 10] = [
    ("linear", Function::Linear),
    ("attention", Function::Attention),
    ("layer_norm_modulate", Function::LayerNormModulate),
    ("rms_norm_rope", Function::RmsNormRope),
    ("gelu_tanh", Function::GeluTanh),
    ("gated_add", Function::GatedAdd),
    ("adamw", Function::Adamw),
    ("upload", Function::Upload),
    ("copy", Function::Copy),
    ("matmul_ceiling", Function::MatmulCeiling),
];

/// An operation, forward or only its backward pass: `gelu_tanh`, `gelu_tanh_backward`. A backward pass computes only the gradients that
/// training with frozen weights needs. The names of attention are `attention_forward` and `attention_backward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub(super) function: Function,
    pub(super) backward: bool,
}

/// The least work of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// FLOPs: multiplications and additions of matrix products.
    pub flops: f64,
    /// Bytes: every input read once and every output written once.
    pub bytes: f64,
}

impl Operation {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let both = |(_, function): (_, Function)| [false, true].map(|backward| Self { function, backward });
        NAMES
            .into_iter()
            .flat_map(both)
            .filter(|operation| !operation.backward || operation.function.has_gradient())
            .collect()
    }

    /// If it measures a ceiling of the device: of arithmetic (`true`) or of memory (`false`).
    pub fn ceiling(self) -> Option<bool> {
        match self.function {
            Function::MatmulCeiling => Some(true),
            Function::Copy => Some(false),
            _ => None,
        }
    }

    /// Whether the ceilings of the device apply: not to an upload.
    pub fn has_roof(self) -> bool {
        self.function != Function::Upload
    }

    /// Its shapes in a FLUX of this `width` with heads of size `head`, for one image of `image` and `text` tokens, with an adapter of
    /// `trained` parameters.
    pub(super) fn shapes(
        self,
        width: usize,
        head: usize,
        image: &[usize],
        text: usize,
        trained: usize,
    ) -> Vec<Vec<usize>> {
        let small = width < 3072;
        let each = |shape: &dyn Fn(usize) -> Vec<usize>| image.iter().map(|tokens| shape(tokens + text)).collect();
        match self.function {
            Function::Linear => {
                let [d, rows] = [width, text];
                let mut shapes = vec![vec![rows, d, d], vec![rows, d, 4 * d], vec![rows, 4 * d, d]];
                if !self.backward {
                    shapes.extend([vec![1, d, 6 * d], vec![1, d, 3 * d]]); // modulation: one row for a picture
                }
                for &rows in image {
                    let joint = rows + text;
                    shapes.extend([vec![rows, d, d], vec![rows, d, 4 * d], vec![rows, 4 * d, d]]);
                    shapes.extend([vec![joint, d, d], vec![joint, d, 4 * d], vec![joint, 5 * d, d]]);
                }
                shapes
            }
            Function::Attention => each(&|tokens| vec![1, width / head, tokens, head]),
            Function::RmsNormRope => each(&|tokens| vec![1, tokens, width / head, head]),
            Function::GeluTanh => each(&|tokens| vec![1, tokens, 4 * width]),
            Function::LayerNormModulate | Function::GatedAdd => each(&|tokens| vec![1, tokens, width]),
            Function::Adamw => vec![vec![trained]],
            Function::Upload => vec![vec![if small { 1 << 20 } else { 1 << 26 }]],
            Function::Copy => vec![vec![if small { 1 << 22 } else { 1 << 28 }]],
            Function::MatmulCeiling => vec![vec![if small { 1024 } else { 8192 }; 3]],
        }
    }

    /// The least work, in values of `size` bytes. The backward pass of attention has five products instead of two, because it recomputes
    /// the scores; papers count it so.
    pub fn work(self, shape: &[usize], size: usize) -> Work {
        let of = |axes: &[usize]| axes.iter().map(|&axis| shape[axis] as f64).product::<f64>();
        let count = shape.iter().map(|&n| n as f64).product::<f64>();
        let (flops, numbers) = match (self.function, self.backward) {
            (Function::Linear | Function::MatmulCeiling, _) => (2.0 * count, of(&[0, 1]) + of(&[1, 2]) + of(&[0, 2])),
            (Function::Attention, false) => (4.0 * count * of(&[2]), 4.0 * count),
            (Function::Attention, true) => (10.0 * count * of(&[2]), 8.0 * count),
            (Function::GatedAdd, false) => (0.0, 3.0 * count),
            (Function::LayerNormModulate | Function::RmsNormRope | Function::GeluTanh, true) => (0.0, 3.0 * count),
            (Function::Adamw, _) => return Work { flops: 0.0, bytes: 7.0 * count * size_of::<f32>() as f64 },
            (Function::Upload, _) => (0.0, count),
            _ => (0.0, 2.0 * count),
        };
        Work { flops, bytes: numbers * size as f64 }
    }
}

impl Function {
    fn has_gradient(self) -> bool {
        !matches!(self, Self::Adamw | Self::Upload | Self::Copy | Self::MatmulCeiling)
    }

    /// Which inputs are activations that need gradients in training.
    pub(super) fn tracked(self) -> &'static [usize] {
        match self {
            Self::Attention => &[0, 1, 2],
            Self::GatedAdd => &[0, 2],
            _ => &[0],
        }
    }

    /// Its inputs, each with four axes, built by `of` from a number of values.
    pub(super) fn inputs(self, shape: &[usize], numbers: &dyn Fn(&str, usize) -> Tensor<1>) -> Vec<Tensor<4>> {
        let tensor = |name, dims: [usize; 4]| numbers(name, dims.iter().product()).reshape(dims);
        match (self, shape) {
            (Self::Linear, &[rows, inputs, outputs]) => vec![
                tensor("x", [1, 1, rows, inputs]),
                tensor("weight", [1, 1, outputs, inputs]) * (inputs as f64).powf(-0.5),
                tensor("bias", [1, 1, 1, outputs]),
            ],
            (Self::MatmulCeiling, &[rows, inputs, outputs]) => {
                vec![tensor("x", [1, 1, rows, inputs]), tensor("y", [1, 1, inputs, outputs])]
            }
            // Heads are the third axis in memory, as in the model.
            (Self::Attention, &[batch, heads, tokens, size]) => {
                ["q", "k", "v"].map(|name| tensor(name, [batch, tokens, heads, size]).swap_dims(1, 2)).into()
            }
            (Self::RmsNormRope, &[batch, tokens, heads, size]) => vec![
                tensor("x", [batch, tokens, heads, size]),
                tensor("weight", [1, 1, 1, size]),
                tensor("cos", [1, 1, tokens, size]).cast(FloatDType::F32),
                tensor("sin", [1, 1, tokens, size]).cast(FloatDType::F32),
            ],
            (Self::LayerNormModulate, &[batch, tokens, width]) => {
                let vector = |name| tensor(name, [1, 1, batch, width]);
                vec![tensor("x", [1, batch, tokens, width]), vector("shift"), vector("scale")]
            }
            (Self::GatedAdd, &[batch, tokens, width]) => {
                let stream = |name| tensor(name, [1, batch, tokens, width]);
                vec![stream("x"), tensor("gate", [1, 1, batch, width]), stream("y")]
            }
            (_, shape) => vec![tensor("x", [1, 1, 1, shape.iter().product()])],
        }
    }

    /// The operation as the models call it.
    pub(super) fn run(self, inputs: Vec<Tensor<4>>) -> Tensor<4> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("made for this operation");
        fn matrix(t: Tensor<4>) -> Tensor<2> {
            t.squeeze_dims(&[0, 1])
        }
        match self {
            Self::Linear => kernels::linear(matrix(next()), matrix(next()), Some(next().flatten(0, 3))).unsqueeze(),
            Self::MatmulCeiling => kernels::matmul(matrix(next()), matrix(next())).unsqueeze(),
            Self::Attention => kernels::attention(next(), next(), next()),
            Self::RmsNormRope => {
                let (x, weight) = (next(), next().flatten(0, 3));
                kernels::rms_norm_rope(x, weight, matrix(next()), matrix(next()), 1e-6)
            }
            Self::LayerNormModulate => {
                let x = next().squeeze_dim::<3>(0);
                kernels::layer_norm_modulate(x, matrix(next()), matrix(next()), 1e-6).unsqueeze()
            }
            Self::GatedAdd => {
                let (x, gate) = (next().squeeze_dim::<3>(0), matrix(next()));
                kernels::gated_add(x, gate, next().squeeze_dim(0)).unsqueeze()
            }
            Self::GeluTanh => kernels::gelu_tanh(next()),
            Self::Adamw | Self::Upload | Self::Copy => next() * 1.0,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (name, _) = NAMES.iter().find(|(_, function)| *function == self.function).expect("each has a name");
        f.write_str(name)?;
        match (self.backward, self.function) {
            (true, _) => f.write_str("_backward"),
            (false, Function::Attention) => f.write_str("_forward"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        let found = Self::all().into_iter().find(|operation| operation.to_string() == word);
        found.ok_or_else(|| format!("`{word}` is not an operation"))
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str) -> Operation {
        name.parse().unwrap()
    }

    #[test]
    fn every_operation_is_found_by_its_name() {
        let all = Operation::all();
        assert_eq!(all.len(), 16);
        assert!(all.iter().all(|one| operation(&one.to_string()) == *one));
        assert!(
            ["attention", "adamw_backward", "linear_forward"].iter().all(|word| word.parse::<Operation>().is_err())
        );
    }

    #[test]
    fn work_is_counted_from_the_shape() {
        let work = |name, shape: &[usize]| operation(name).work(shape, 2);
        assert_eq!(work("linear", &[2, 3, 5]), Work { flops: 60.0, bytes: 2.0 * (6.0 + 15.0 + 10.0) });
        assert_eq!(work("attention_forward", &[1, 2, 3, 4]), Work { flops: 4.0 * 24.0 * 3.0, bytes: 2.0 * 4.0 * 24.0 });
        assert_eq!(work("gated_add_backward", &[1, 3, 4]).bytes, 2.0 * 24.0);
        assert_eq!(work("adamw", &[10]).bytes, 280.0);
        assert_eq!(work("copy", &[10]), Work { flops: 0.0, bytes: 40.0 });
    }
}
