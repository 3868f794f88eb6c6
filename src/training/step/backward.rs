//! Gradients of a network, segment by segment, with as much or as little tape as memory allows.
//!
//! The segments are divided into groups. All but the last group run forward without a tape, and only what enters each is
//! kept. Then the groups are walked backward: each runs again, with a tape, and the gradient is pulled through it (a
//! vector-Jacobian product). One group for everything is ordinary automatic differentiation; one for each block needs the
//! activations of one block. The gradients are the same bits either way.

use std::{collections::BTreeMap, ops::Range};

use burn::{backend::DispatchTensor, tensor::Tensor};

use crate::{
    kernels::vjp_seed,
    lending::Part,
    lora::{name_a, name_b},
    models::{Change, Inputs, Network, Segment, State},
    nn::{Adapters, Delta, Leaf, Parameter},
};

/// What gradients are wanted of.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// Of these, which the network wears.
    Adapters(&'a Adapters),
    /// Of the network's own tensors.
    Weights,
}

impl Subject<'_> {
    fn worn(&self) -> Option<&Adapters> {
        match self {
            Self::Adapters(adapters) => Some(adapters),
            Self::Weights => None,
        }
    }
}

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

/// The loss (a plain scalar) and its gradient with respect to the `subject`.
///
/// `groups` divides the segments, in order and without gaps. `loss` maps the prediction to a scalar; its constants must be on
/// the autodiff device.
pub fn backward<M: Network>(
    model: &M,
    subject: Subject<'_>,
    inputs: &M::Inputs,
    groups: &[Range<usize>],
    loss: impl Fn(Tensor<4>) -> Tensor<1>,
) -> (Tensor<1>, Gradients) {
    let mut gradients = Gradients::new();
    let value = backward_onto(&mut gradients, model, subject, inputs, groups, loss);
    (value, gradients)
}

/// The same with the gradients added to those of `sum`, group by group: beside the sum there are only the gradients of one group.
/// Returns the loss.
pub fn backward_onto<M: Network>(
    sum: &mut Gradients,
    model: &M,
    subject: Subject<'_>,
    inputs: &M::Inputs,
    groups: &[Range<usize>],
    loss: impl Fn(Tensor<4>) -> Tensor<1>,
) -> Tensor<1> {
    let first = match subject {
        Subject::Adapters(adapters) => model.lender().first_wearing(adapters),
        Subject::Weights => model.lender().first_with_parameters(),
    };
    let first = first.unwrap_or(model.len());
    let (last, before) = groups.split_last().expect("the segments are in groups");
    // The last group has the loss, whether anything of it is trained or not; from the first trained segment on there is nothing.
    let back: Vec<_> = std::iter::once(last).chain(before.iter().rev().take_while(|group| group.end > first)).collect();
    let order: Vec<usize> = (0..last.start).chain(back.iter().flat_map(|&group| group.clone())).collect();
    let mut lent = model.lender().walk(order, subject.worn());
    let mut next = || lent.next().expect("the walk goes forward and back");

    // Forward, without a tape: what enters each group.
    let mut entering = vec![M::State::default()];
    for group in before {
        let mut state = entering.last().expect("starts with one").clone();
        for _ in group.clone() {
            state = next().run(inputs, state);
        }
        entering.push(state);
    }

    let tracked_inputs = inputs.tracked();
    let mut value = None;
    let mut upstream: Option<Vec<Option<DispatchTensor>>> = None;
    for (group, entry) in back.into_iter().zip(entering.into_iter().rev()) {
        // What the stem shares needs a gradient only if the stem is trained.
        let (streams, shared) = (group.start > first, group.start > first && first == 0);
        let leaves = entry.map(&mut Leaves { streams, shared });
        let mut trained = Vec::new();
        let mut state = leaves.clone();
        for _ in group.clone() {
            let mut segment = next().into_own();
            trained.extend(track(&mut segment, subject));
            state = segment.run(&tracked_inputs, state);
        }
        let scalar = match upstream.take() {
            Some(gradients) => seed_state(state, gradients),
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
                let total = match sum.remove(&name) {
                    Some(before) => before + gradient,
                    None => gradient,
                };
                sum.insert(name, total);
            }
        }
        upstream = streams.then(|| {
            let mut entered = Entered { tape: &mut tape, shared, gradients: Vec::new() };
            leaves.map(&mut entered);
            entered.gradients
        });
    }
    value.expect("the last group ends with the head")
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
struct VjpSeeds {
    gradients: std::vec::IntoIter<Option<DispatchTensor>>,
    sum: Option<Tensor<1>>,
}

impl Change for VjpSeeds {
    fn stream<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let gradient = self.gradients.next().expect("a group leaves what the next one is entered by");
        if let Some(gradient) = gradient {
            let scalar = vjp_seed(tensor.clone(), Tensor::from_dispatch(gradient));
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
fn seed_state(state: impl State, gradients: Vec<Option<DispatchTensor>>) -> Tensor<1> {
    let mut seeds = VjpSeeds { gradients: gradients.into_iter(), sum: None };
    state.map(&mut seeds);
    seeds.sum.expect("a state holds at least one stream")
}

/// Makes what is trained of a segment leaves; returns them with their names.
fn track(segment: &mut impl Part, subject: Subject<'_>) -> Vec<(String, Leaf)> {
    let name = segment.name().to_string();
    let mut found = Vec::new();
    match subject {
        Subject::Weights => {
            segment.parameters(&name, &mut |name, parameter| found.push((name.into(), parameter.track())));
        }
        Subject::Adapters(_) => segment.linears(&name, &mut |layer, linear| {
            for adapter in linear.worn_mut() {
                // Other forms are worn, not trained.
                if let Delta::LowRank { a, b } = &mut adapter.delta {
                    found.push((name_a(layer), Parameter::Matrix(a).track()));
                    found.push((name_b(layer), Parameter::Matrix(b).track()));
                }
            }
        }),
    }
    found
}
