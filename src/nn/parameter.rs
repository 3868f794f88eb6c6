//! Trainable tensors of a model, of any rank.

use burn::tensor::{Gradients, Shape, Tensor};

/// One trainable tensor, borrowed from its layer.
pub enum Parameter<'a> {
    /// `[D]`: biases and the weights of norms.
    Vector(&'a mut Tensor<1>),
    /// `[out, in]`: linear layers, and the two factors of an adapter.
    Matrix(&'a mut Tensor<2>),
    /// `[out, in, kernel, kernel]`: convolutions.
    Kernel(&'a mut Tensor<4>),
}

/// A part of a model that can list its tensors: those that full fine-tuning trains, averages and saves.
pub trait Parameters {
    /// Calls `visit` with the checkpoint name and each tensor, in a fixed order. `path` is the name of this part; names below
    /// it are joined with a dot.
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>));
}

impl Parameter<'_> {
    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(t) => t.dims().to_vec(),
            Self::Matrix(t) => t.dims().to_vec(),
            Self::Kernel(t) => t.dims().to_vec(),
        }
    }

    /// Its values, flattened.
    pub fn flat(&self) -> Tensor<1> {
        match self {
            Self::Vector(t) => Tensor::clone(t),
            Self::Matrix(t) => flat(Tensor::clone(t)),
            Self::Kernel(t) => flat(Tensor::clone(t)),
        }
    }

    /// Takes its values out of the layer, flattened, and its shape; for [`put`](Self::put) afterwards. Until then nothing but the
    /// caller holds the values, so they can be updated in place.
    pub fn take(self) -> (Tensor<1>, Vec<usize>) {
        fn taken<const D: usize>(t: &mut Tensor<D>) -> Tensor<1> {
            // One element, not zero: CubeCL has no zero-byte allocations, and a request for one first frees every cached page.
            let empty = Tensor::empty([1; D], (&t.device(), t.dtype()));
            flat(std::mem::replace(t, empty))
        }
        let shape = self.shape();
        let values = match self {
            Self::Vector(t) => taken(t),
            Self::Matrix(t) => taken(t),
            Self::Kernel(t) => taken(t),
        };
        (values, shape)
    }

    /// Sets its values to these, flattened, of its `shape`.
    pub fn put(self, values: Tensor<1>, shape: &[usize]) {
        match self {
            Self::Vector(t) => *t = values,
            Self::Matrix(t) => *t = values.reshape(Shape::from(shape)),
            Self::Kernel(t) => *t = values.reshape(Shape::from(shape)),
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
    /// A tensor with one axis.
    Vector(Tensor<1>),
    /// A tensor with two axes.
    Matrix(Tensor<2>),
    /// A tensor with four axes.
    Kernel(Tensor<4>),
}

impl Leaf {
    /// Removes its gradient from the tape, flattened; `None` if the loss does not depend on it.
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
