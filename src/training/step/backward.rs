//! Gradients of a network, segment by segment, with as much tape as memory allows.
//!
//! The segments are divided into groups. All but the last group run forward without a tape, and only the inputs of each are kept. The
//! backward pass then visits the groups in reverse: each is recomputed with a tape, and the upstream gradient is propagated through it
//! (a vector-Jacobian product). One group for everything is ordinary automatic differentiation; one per block needs the activations of
//! a single block. The gradients have the same bits either way.

use std::{collections::BTreeMap, ops::Range};

use burn::{backend::DispatchTensor, tensor::Tensor};

use crate::{
    kernels::vjp_seed,
    lending::Part,
    lora::{name_a, name_b},
    models::{Change, Inputs, Network, Segment, State},
    nn::{Adapters, Delta, Leaf, Parameter},
};

/// The parameters whose gradients are computed.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// These adapters, attached to the network.
    Adapters(&'a Adapters),
    /// The network's own tensors.
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

/// Gradients by the name of the tensor, such as `transformer_blocks.0.attn.to_q.lora_A.weight`, each as one row; off-tape f32
/// tensors.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// One group per segment; the head joins the last block, whose activations are needed at once anyway.
pub fn blockwise(segments: usize) -> Vec<Range<usize>> {
    (0..segments - 1).map(|i| if i + 2 == segments { i..segments } else { i..i + 1 }).collect()
}

/// A single group: all activations are kept.
pub fn full(segments: usize) -> Vec<Range<usize>> {
    std::iter::once(0..segments).collect()
}

/// The loss (an off-tape scalar) and its gradient with respect to the `subject`.
///
/// `groups` partitions the segments in order. `loss` maps the prediction to a scalar; its constants must be on the autodiff
/// device.
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

/// The same with the gradients added to `sum`, group by group, so that only the gradients of one group exist beside it. Returns the
/// loss.
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
    // The last group has the loss, even if nothing of it is trained. Before the first trained segment no gradient is needed.
    let back: Vec<_> = std::iter::once(last).chain(before.iter().rev().take_while(|group| group.end > first)).collect();
    let order: Vec<usize> = (0..last.start).chain(back.iter().flat_map(|&group| group.clone())).collect();
    let mut lent = model.lender().walk(order, subject.worn());
    let mut next = || lent.next().expect("the walk goes forward and back");

    // Forward without a tape, keeping the inputs of each group.
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
        // The shared tensors of the stem need gradients only if the stem is trained.
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

/// Makes the inputs of a group leaves of its tape, or constants.
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

/// Takes the gradients of a group's inputs from its tape.
struct Entered<'a> {
    tape: &'a mut burn::tensor::Gradients,
    shared: bool,
    /// One per tensor of the state; `None` where no gradient is needed.
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

/// Sums scalars whose gradients with respect to the tensors of a state are given.
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

/// A scalar whose gradient with respect to `state` is as given: the vector-Jacobian seed. Tensors that the group only reads or passes
/// on keep their own share of the upstream gradient.
fn seed_state(state: impl State, gradients: Vec<Option<DispatchTensor>>) -> Tensor<1> {
    let mut seeds = VjpSeeds { gradients: gradients.into_iter(), sum: None };
    state.map(&mut seeds);
    seeds.sum.expect("a state holds at least one stream")
}

/// Makes the trained tensors of a segment leaves; returns them with their names.
fn track(segment: &mut impl Part, subject: Subject<'_>) -> Vec<(String, Leaf)> {
    let name = segment.name().to_string();
    let mut found = Vec::new();
    match subject {
        Subject::Weights => {
            segment.parameters(&name, &mut |name, parameter| found.push((name.into(), parameter.track())));
        }
        Subject::Adapters(_) => segment.linears(&name, &mut |layer, linear| {
            for adapter in linear.worn_mut() {
                // Other forms are applied, not trained.
                if let Delta::LowRank { a, b } = &mut adapter.delta {
                    found.push((name_a(layer), Parameter::Matrix(a).track()));
                    found.push((name_b(layer), Parameter::Matrix(b).track()));
                }
            }
        }),
    }
    found
}
