//! Stages release their memory, and work takes what was planned. A single test, so that nothing else allocates in this process at the
//! same time.
#![cfg(target_os = "linux")]

mod support;

use burn::tensor::Device;
use kiln::{
    memory::{self, Level, mib},
    training,
};
use support::{
    program::{train, workshop},
    sized::{Models, Work},
};

/// What the allocator may keep between two equal runs, in MiB: pages of small blocks that are not adjacent. One copy of
/// the model's weights would be more.
const SLACK: f64 = 2.0;

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

/// By what share a plan may be off. `cargo bench --bench plan` measures all levels at two sizes.
const TENTH: f64 = 0.1;

fn the_plan_is_within_a_tenth_of_the_peak() {
    let models = Models::write();
    for (work, level) in [
        (Work::Flux, Level::None),
        (Work::Flux, Level::Aggressive),
        (Work::StableDiffusion, Level::Ultra),
        (Work::FluxLora, Level::Aggressive),
    ] {
        work.take(&models, 256, level); // what is made once: also the threads' own room for large products
        let taken = work.take(&models, 256, level);
        let (planned, peak) = (mib(taken.planned()), mib(taken.peak));
        assert!(
            taken.off().abs() < TENTH,
            "{} at `{}`: {planned:.0} MiB planned, {peak:.0} measured\n{}",
            work.name(),
            level.word(),
            taken.plan
        );
    }
}

#[test]
fn memory_is_released_and_planned() {
    validating_twice_leaves_no_more_in_use_than_validating_once();
    memory::tune_allocator(); // as the program does; from here on
    the_plan_is_within_a_tenth_of_the_peak();
}
