//! Gradients of a segmented network, with as much or as little tape as memory allows.
//!
//! The segments are divided into groups. All but the last group run forward without a tape, and only what enters each is
//! kept. Then the groups are walked backward: each runs again, with a tape, and the gradient is pulled through it (a
//! vector-Jacobian product). One group for everything is ordinary automatic differentiation; one for each block needs the
//! activations of one block. The gradients are the same bits either way.

use std::{collections::BTreeMap, ops::Range};

use burn::{backend::DispatchTensor, tensor::Tensor};

use super::Mode;
use crate::{
    kernels::pull_back,
    lora::{name_a, name_b},
    models::{Change, Inputs, Segment, Segmented, State},
    nn::{Leaf, Parameter},
};

/// Gradients by the name of the tensor, such as `transformer_blocks.0.attn.to_q.lora_A.weight`, each as one row; plain f32
/// tensors.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// One group for each segment; the head joins the last block, whose activations are needed at once anyway.
pub fn blockwise(segments: usize) -> Vec<Range<usize>> {
    (0..segments - 1).map(|i| if i + 2 == segments { i..segments } else { i..i + 1 }).collect()
}

/// One group: every activation is kept.
pub fn full(segments: usize) -> Vec<Range<usize>> {
    std::iter::once(0..segments).collect()
}

/// The loss (a plain scalar) and its gradient with respect to what `mode` trains of `model`: its adapters, or all its own
/// tensors.
///
/// `groups` divides the segments, in order and without gaps. `loss` maps the prediction to a scalar; its constants must be on
/// the autodiff device.
pub fn backward<M: Segmented>(
    model: &M,
    mode: Mode,
    inputs: &<M::Segment as Segment>::Inputs,
    groups: &[Range<usize>],
    loss: impl Fn(Tensor<4>) -> Tensor<1>,
) -> (Tensor<1>, Gradients) {
    let segments = model.segments();
    let first = segments.iter().position(|segment| is_trained(segment, mode)).unwrap_or(segments.len());
    let entering = run_untracked(segments, inputs, groups);
    let tracked_inputs = inputs.tracked();
    let mut gradients = Gradients::new();
    let mut value = None;
    let mut upstream: Option<Vec<Option<DispatchTensor>>> = None;
    for (group, entry) in groups.iter().zip(entering).rev() {
        if value.is_some() && group.end <= first {
            break; // nothing to train from here on
        }
        // What the stem shares needs a gradient only if the stem is trained.
        let (streams, shared) = (group.start > first, group.start > first && first == 0);
        let leaves = entry.map(&mut Leaves { streams, shared });
        let mut trained = Vec::new();
        let mut state = leaves.clone();
        for segment in &segments[group.clone()] {
            let mut segment = segment.clone();
            trained.extend(track(&mut segment, mode));
            state = segment.run(&tracked_inputs, state);
        }
        let scalar = match upstream.take() {
            Some(gradients) => pull(state, gradients),
            None => {
                let scalar = loss(state.prediction());
                value = Some(scalar.clone().inner());
                scalar
            }
        };
        if group.end <= first {
            break; // nothing is trained: there is a loss, but no gradient
        }
        let mut tape = scalar.backward();
        for (name, leaf) in trained {
            if let Some(gradient) = leaf.gradient(&mut tape) {
                gradients.insert(name, gradient);
            }
        }
        upstream = streams.then(|| {
            let mut entered = Entered { tape: &mut tape, shared, gradients: Vec::new() };
            leaves.map(&mut entered);
            entered.gradients
        });
    }
    (value.expect("the last group ends with the head"), gradients)
}

/// Runs all groups but the last, without a tape; returns what enters each group.
fn run_untracked<S: Segment>(segments: &[S], inputs: &S::Inputs, groups: &[Range<usize>]) -> Vec<S::State> {
    let mut entering = vec![S::State::default()];
    for group in &groups[..groups.len() - 1] {
        let before = entering.last().expect("starts with one").clone();
        entering.push(segments[group.clone()].iter().fold(before, |state, segment| segment.run(inputs, state)));
    }
    entering
}

/// Makes what enters a group leaves of its tape, or constants beside it.
struct Leaves {
    streams: bool,
    shared: bool,
}

impl Change for Leaves {
    fn stream<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let tensor = Tensor::from_inner(tensor);
        if self.streams { tensor.require_grad() } else { tensor }
    }

    fn shared<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let tensor = Tensor::from_inner(tensor);
        if self.shared { tensor.require_grad() } else { tensor }
    }
}

/// Takes the gradients of what entered a group off its tape.
struct Entered<'a> {
    tape: &'a mut burn::tensor::Gradients,
    shared: bool,
    /// One for each tensor of the state, of its own rank; `None` where none is wanted.
    gradients: Vec<Option<DispatchTensor>>,
}

impl Change for Entered<'_> {
    fn stream<const D: usize>(&mut self, leaf: Tensor<D>) -> Tensor<D> {
        let gradient = leaf.grad_remove(self.tape).unwrap_or_else(|| leaf.clone().inner().zeros_like());
        self.gradients.push(Some(gradient.into_dispatch()));
        leaf
    }

    fn shared<const D: usize>(&mut self, leaf: Tensor<D>) -> Tensor<D> {
        if self.shared {
            return self.stream(leaf);
        }
        self.gradients.push(None);
        leaf
    }
}

/// Adds up scalars whose gradients with respect to the tensors of a state are given.
struct Pull {
    gradients: std::vec::IntoIter<Option<DispatchTensor>>,
    sum: Option<Tensor<1>>,
}

impl Change for Pull {
    fn stream<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let gradient = self.gradients.next().expect("a group leaves what the next one is entered by");
        if let Some(gradient) = gradient {
            let scalar = pull_back(tensor.clone(), Tensor::from_dispatch(gradient));
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + scalar,
                None => scalar,
            });
        }
        tensor
    }

    fn shared<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        self.stream(tensor)
    }
}

/// A scalar whose gradient with respect to `state` is as given. What the group only reads or lets pass has its own share of
/// the gradient from behind the group.
fn pull(state: impl State, gradients: Vec<Option<DispatchTensor>>) -> Tensor<1> {
    let mut pull = Pull { gradients: gradients.into_iter(), sum: None };
    state.map(&mut pull);
    pull.sum.expect("a state holds at least one stream")
}

fn is_trained<S: Segment>(segment: &S, mode: Mode) -> bool {
    let (mut found, mut segment) = (false, segment.clone());
    match mode {
        Mode::Lora => segment.linears("", &mut |_, layer| found |= !layer.adapters.is_empty()),
        Mode::Full => segment.parameters("", &mut |_, _| found = true),
    }
    found
}

/// Makes what is trained of a segment leaves; returns them with their names.
fn track<S: Segment>(segment: &mut S, mode: Mode) -> Vec<(String, Leaf)> {
    let name = segment.name().to_string();
    let mut found = Vec::new();
    match mode {
        Mode::Full => segment.parameters(&name, &mut |name, parameter| found.push((name.into(), parameter.track()))),
        Mode::Lora => segment.linears(&name, &mut |layer, linear| {
            for adapter in &mut linear.adapters {
                found.push((name_a(layer), Parameter::Matrix(&mut adapter.a).track()));
                found.push((name_b(layer), Parameter::Matrix(&mut adapter.b).track()));
            }
        }),
    }
    found
}
