//! The tensors of a model that can be trained, whatever their rank.

use burn::tensor::{Gradients, Tensor};

/// One tensor that can be trained, where it lies in its layer.
pub enum Parameter<'a> {
    /// `[D]`: biases and the weights of norms.
    Vector(&'a mut Tensor<1>),
    /// `[out, in]`: linear layers, and the two factors of an adapter.
    Matrix(&'a mut Tensor<2>),
    /// `[out, in, kernel, kernel]`: convolutions.
    Kernel(&'a mut Tensor<4>),
}

/// A part of a model that can name its tensors: what full fine-tuning trains, averages and saves.
pub trait Parameters {
    /// Calls `visit` with the checkpoint name and each tensor, in a fixed order. `path` is the name of this part; names below
    /// it are joined with a dot.
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>));
}

/// The name of what is called `name` below `path`; either may be empty.
pub fn below(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_string(),
        (path, "") => path.to_string(),
        (path, name) => format!("{path}.{name}"),
    }
}

impl Parameter<'_> {
    /// Its sizes.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(t) => t.dims().to_vec(),
            Self::Matrix(t) => t.dims().to_vec(),
            Self::Kernel(t) => t.dims().to_vec(),
        }
    }

    /// Its numbers in order, as one row.
    pub fn flat(&self) -> Tensor<1> {
        match self {
            Self::Vector(t) => Tensor::clone(t),
            Self::Matrix(t) => flat(Tensor::clone(t)),
            Self::Kernel(t) => flat(Tensor::clone(t)),
        }
    }

    /// Replaces its numbers, given in order as one row, by what `change` makes of them. Nothing else of the layer holds them
    /// meanwhile, so that a change in place is one.
    pub fn update(self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        match self {
            Self::Vector(t) => replace(t, change),
            Self::Matrix(t) => replace(t, change),
            Self::Kernel(t) => replace(t, change),
        }
    }

    /// Makes it a leaf of the autodiff graph.
    pub fn track(self) -> Leaf {
        fn leaf<const D: usize>(t: &mut Tensor<D>) -> Tensor<D> {
            *t = Tensor::from_inner(t.clone()).require_grad();
            t.clone()
        }
        match self {
            Self::Vector(t) => Leaf::Vector(leaf(t)),
            Self::Matrix(t) => Leaf::Matrix(leaf(t)),
            Self::Kernel(t) => Leaf::Kernel(leaf(t)),
        }
    }
}

/// A tracked [`Parameter`].
pub enum Leaf {
    /// Of one axis.
    Vector(Tensor<1>),
    /// Of two axes.
    Matrix(Tensor<2>),
    /// Of four axes.
    Kernel(Tensor<4>),
}

impl Leaf {
    /// Takes its gradient off the tape, as one row; `None` if the loss does not depend on it.
    pub fn gradient(&self, tape: &mut Gradients) -> Option<Tensor<1>> {
        match self {
            Self::Vector(t) => t.grad_remove(tape),
            Self::Matrix(t) => t.grad_remove(tape).map(flat),
            Self::Kernel(t) => t.grad_remove(tape).map(flat),
        }
    }
}

fn flat<const D: usize>(t: Tensor<D>) -> Tensor<1> {
    let count = t.shape().num_elements();
    t.reshape([count])
}

fn replace<const D: usize>(t: &mut Tensor<D>, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
    let shape = t.dims();
    // Of one number: a GPU has no memory of no bytes, and would first give back all that is free to make room for it.
    let empty = Tensor::empty([1; D], (&t.device(), t.dtype()));
    *t = change(flat(std::mem::replace(t, empty))).reshape(shape);
}
