//! Out of device memory while training: the run continues from its newest checkpoint at the next memory level, bit for bit. The
//! failure is injected.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use kiln::{
    error::Result,
    memory::fail_at,
    training::{Silent, TrainConfig, train},
};

use crate::support::{
    program::{TINY_FLUX, overrides, workshop},
    run::{numbers, state},
};

fn run(workshop: &Path, name: &str, more: &[&str]) -> Result<PathBuf> {
    let settings = ["training.max_steps=8", "checkpoint.every=4", "validation.every=4", "validation.steps=1"];
    let settings: Vec<_> = settings.iter().chain(&["validation.prompts=['a cat']"]).chain(more).copied().collect();
    let config = TrainConfig::load(Path::new(TINY_FLUX), &overrides(workshop, name, &settings)).unwrap();
    train(&config, None, &Device::flex(), &mut Silent)
}

#[test]
fn a_run_continues_at_the_next_memory_level_with_the_same_bits() {
    let workshop = workshop("exhausted_training");
    let expected = run(&workshop, "plain", &[]).unwrap();
    // Before anything, while loading, before the first step, and after a checkpoint: the first once at each level.
    for (stage, before, times) in
        [("prepare", 0, 3), ("load", 0, 1), ("validation images", 0, 1), ("validation images", 1, 1)]
    {
        (0..times).for_each(|time| fail_at(stage, if time == 0 { before } else { 0 }));
        let name = format!("{}-{before}", stage.replace(' ', "-"));
        let found = run(&workshop, &name, &[]).unwrap();
        assert_eq!(found.file_name().unwrap().to_str(), Some(name.as_str()), "one folder");
        assert!(state(&found, 8) == state(&expected, 8), "{name}");
        assert!(numbers(&found) == numbers(&expected), "{name}");
    }
    fail_at("load", 0);
    let error = run(&workshop, "named", &["memory.level=none"]).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
}
