//! Stages release their memory. A single test, so that nothing else allocates in this process at the same time.
#![cfg(target_os = "linux")]

mod support;

use burn::tensor::Device;
use kiln::{memory, training};
use support::program::{train, workshop};

/// What the allocator may keep between two equal runs, in MiB: pages of small blocks that are not adjacent. One copy of
/// the model's weights would be more.
const SLACK: f64 = 2.0;

#[test]
fn validating_twice_leaves_no_more_in_use_than_validating_once() {
    let workshop = workshop("memory");
    let more = ["checkpoint.every=1", "validation.prompts=['a circle']", "validation.steps=1"];
    let run = train(&workshop, "run", &more);
    let device = Device::flex();
    let in_use = || {
        let report = training::validate(&run, None, None, &device).unwrap();
        assert_eq!(report.checkpoints.len(), 4);
        memory::release(&device);
        memory::usage(&device).resident_mib()
    };
    in_use(); // what is made once: thread pools and their stacks, the code that is paged in
    let (first, second) = (in_use(), in_use());
    assert!(second <= first + SLACK, "{first:.1} MiB after one, {second:.1} MiB after two");
}
