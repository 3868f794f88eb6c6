//! Gradients of a segmented network, with as much or as little tape as memory allows.
//!
//! The segments are divided into groups. All but the last group run forward without a tape, and only what enters each is
//! kept. Then the groups are walked backward: each runs again, with a tape, and the gradient is pulled through it (a
//! vector-Jacobian product). One group for everything is ordinary automatic differentiation; one for each block needs the
//! activations of one block. The gradients are the same bits either way.

use std::{collections::BTreeMap, ops::Range};

use burn::tensor::Tensor;

use super::Mode;
use crate::{
    kernels::pull_back,
    lora::{name_a, name_b},
    models::{Inputs, Segment, Segmented, State},
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
    let mut upstream: Option<State> = None;
    for (group, entry) in groups.iter().zip(entering).rev() {
        if value.is_some() && group.end <= first {
            break; // nothing to train from here on
        }
        let leaves = leaves(entry, group.start > first, first == 0);
        let mut trained = Vec::new();
        let mut state = leaves.clone();
        for segment in &segments[group.clone()] {
            let mut segment = segment.clone();
            trained.extend(track(&mut segment, mode));
            state = segment.run(&tracked_inputs, state);
        }
        let scalar = match &upstream {
            Some(gradient) => pull(state, gradient),
            None => {
                let scalar = loss(state.streams.pop().expect("the head leaves one stream"));
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
        upstream = (group.start > first).then(|| State {
            streams: entered(leaves.streams, &mut tape),
            shared: if first == 0 { entered(leaves.shared, &mut tape) } else { Vec::new() },
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
    fn leaf<const D: usize>(t: Tensor<D>, tracked: bool) -> Tensor<D> {
        let t = Tensor::from_inner(t);
        if tracked { t.require_grad() } else { t }
    }
    State {
        streams: entry.streams.into_iter().map(|t| leaf(t, streams)).collect(),
        shared: entry.shared.into_iter().map(|t| leaf(t, streams && shared)).collect(),
    }
}

/// The gradients of what entered a group.
fn entered<const D: usize>(leaves: Vec<Tensor<D>>, tape: &mut burn::tensor::Gradients) -> Vec<Tensor<D>> {
    let of = |leaf: Tensor<D>| leaf.grad_remove(tape).unwrap_or_else(|| leaf.inner().zeros_like());
    leaves.into_iter().map(of).collect()
}

/// A scalar whose gradient with respect to `state` is `gradient`. What the group only reads or lets pass has its own share of
/// the gradient from behind the group.
fn pull(state: State, gradient: &State) -> Tensor<1> {
    let streams = state.streams.into_iter().zip(&gradient.streams).map(|(y, dy)| pull_back(y, dy.clone()));
    let shared = state.shared.into_iter().zip(&gradient.shared).map(|(y, dy)| pull_back(y, dy.clone()));
    streams.chain(shared).reduce(|a, b| a + b).expect("a state holds at least one stream")
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
