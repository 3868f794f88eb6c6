//! Gradients of a segmented network, with as much or as little tape as memory allows.
//!
//! The segments are divided into groups. All but the last group run forward without a tape, and only what enters each is
//! kept. Then the groups are walked backward: each runs again, with a tape, and the gradient is pulled through it (a
//! vector-Jacobian product). One group for everything is ordinary automatic differentiation; one for each block needs the
//! activations of one block. The gradients are the same bits either way.

use std::{collections::BTreeMap, ops::Range};

use burn::tensor::Tensor;

use crate::models::{Inputs, Segment, Segmented, State};

/// Gradients by the name of the tensor, such as `transformer_blocks.0.attn.to_q.lora_A.weight`; plain f32 tensors.
pub type Gradients = BTreeMap<String, Tensor<2>>;

/// The name of the tensor `A` of the adapter on `layer`.
pub fn name_a(layer: &str) -> String {
    format!("{layer}.lora_A.weight")
}

/// The name of the tensor `B` of the adapter on `layer`.
pub fn name_b(layer: &str) -> String {
    format!("{layer}.lora_B.weight")
}

/// One group for each segment; the head joins the last block, whose activations are needed at once anyway.
pub fn blockwise(segments: usize) -> Vec<Range<usize>> {
    (0..segments - 1).map(|i| if i + 2 == segments { i..segments } else { i..i + 1 }).collect()
}

/// One group: every activation is kept.
pub fn full(segments: usize) -> Vec<Range<usize>> {
    std::iter::once(0..segments).collect()
}

/// The loss (a plain scalar) and its gradient with respect to all adapters on `model`.
///
/// `groups` divides the segments, in order and without gaps. `loss` maps the prediction `[B, L, D]` to a scalar; its
/// constants must be on the autodiff device.
pub fn backward<M: Segmented>(
    model: &M,
    inputs: &<M::Segment as Segment>::Inputs,
    groups: &[Range<usize>],
    loss: impl Fn(Tensor<3>) -> Tensor<1>,
) -> (Tensor<1>, Gradients) {
    let segments = model.segments();
    let first = segments.iter().position(has_adapters).unwrap_or(segments.len());
    let entering = run_untracked(segments, inputs, groups);
    let tracked_inputs = inputs.tracked();
    let mut gradients = Gradients::new();
    let mut value = None;
    let mut upstream: Option<State> = None;
    for (group, entry) in groups.iter().zip(entering).rev() {
        if value.is_some() && group.end <= first {
            break; // nothing to train from here on
        }
        let leaves = leaves(entry, group.start > first, first == 0);
        let mut adapters = Vec::new();
        let mut state = leaves.clone();
        for segment in &segments[group.clone()] {
            let mut segment = segment.clone();
            adapters.extend(track_adapters(&mut segment));
            state = segment.run(&tracked_inputs, state);
        }
        let scalar = match &upstream {
            Some(gradient) => product(state, gradient),
            None => {
                let scalar = loss(state.streams.pop().expect("the head leaves one stream"));
                value = Some(scalar.clone().inner());
                scalar
            }
        };
        if group.end <= first {
            break; // no adapters at all: there is a loss, but no gradient
        }
        let mut tape = scalar.backward();
        for (name, leaf) in adapters {
            if let Some(gradient) = leaf.grad_remove(&mut tape) {
                gradients.insert(name, gradient);
            }
        }
        let mut pull = |leaves: Vec<Tensor<3>>| -> Vec<Tensor<3>> {
            let of = |leaf: Tensor<3>| leaf.grad_remove(&mut tape).unwrap_or_else(|| leaf.inner().zeros_like());
            leaves.into_iter().map(of).collect()
        };
        upstream = (group.start > first).then(|| State {
            streams: pull(leaves.streams),
            shared: if first == 0 { pull(leaves.shared) } else { Vec::new() },
        });
    }
    (value.expect("the last group ends with the head"), gradients)
}

/// Runs all groups but the last, without a tape; returns what enters each group.
fn run_untracked<S: Segment>(segments: &[S], inputs: &S::Inputs, groups: &[Range<usize>]) -> Vec<State> {
    let mut entering = vec![State::default()];
    for group in &groups[..groups.len() - 1] {
        let before = entering.last().expect("starts with one").clone();
        entering.push(segments[group.clone()].iter().fold(before, |state, segment| segment.run(inputs, state)));
    }
    entering
}

/// What enters a group, as leaves of its tape. What the stem shares needs a gradient only if the stem is trained.
fn leaves(entry: State, streams: bool, shared: bool) -> State {
    let leaf = |t: Tensor<3>, tracked: bool| {
        let t = Tensor::from_inner(t);
        if tracked { t.require_grad() } else { t }
    };
    State {
        streams: entry.streams.into_iter().map(|t| leaf(t, streams)).collect(),
        shared: entry.shared.into_iter().map(|t| leaf(t, streams && shared)).collect(),
    }
}

/// `Σ (state · gradient)`: a scalar whose gradient with respect to `state` is `gradient`.
fn product(state: State, gradient: &State) -> Tensor<1> {
    let pairs = |a: Vec<Tensor<3>>, b: &[Tensor<3>]| -> Vec<Tensor<1>> {
        a.into_iter().zip(b).map(|(y, dy)| (y * Tensor::from_inner(dy.clone())).sum()).collect()
    };
    let mut sums = pairs(state.streams, &gradient.streams);
    sums.extend(pairs(state.shared, &gradient.shared));
    sums.into_iter().reduce(|a, b| a + b).expect("a state holds at least one stream")
}

fn has_adapters<S: Segment>(segment: &S) -> bool {
    let mut found = false;
    segment.clone().linears("", &mut |_, layer| found |= !layer.adapters.is_empty());
    found
}

/// Makes every adapter of a segment a leaf; returns the leaves with their names.
fn track_adapters<S: Segment>(segment: &mut S) -> Vec<(String, Tensor<2>)> {
    let name = segment.name().to_string();
    let mut found = Vec::new();
    segment.linears(&name, &mut |layer, linear| {
        for adapter in &mut linear.adapters {
            for (name, tensor) in [(name_a(layer), &mut adapter.a), (name_b(layer), &mut adapter.b)] {
                *tensor = Tensor::from_inner(tensor.clone()).require_grad();
                found.push((name, tensor.clone()));
            }
        }
    });
    found
}
