//! Memory levels: the same bits at every level, a level that fits, and a plan without loading anything.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use crate::support::{
    program::{MODEL, TINY_EDIT, fails, overrides, succeeds, tensors, train, with_overrides, workshop},
    sampling::{EDITS, MAKES, draw, model},
};

const LEVELS: [&str; 4] = ["none", "balanced", "aggressive", "ultra"];

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("levels"));

/// The bytes of all files that a command has written into a folder, by their order.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// What a command with an `--output` writes at each level must be the same.
fn same_at_every_level(name: &str, arguments: &[&str]) {
    let results = LEVELS.map(|level| {
        let output = WORKSHOP.join(format!("{name}-{level}"));
        let more = ["--memory", level, "--output", output.to_str().unwrap()];
        succeeds(&arguments.iter().chain(&more).copied().collect::<Vec<_>>());
        files(&output)
    });
    for (level, result) in LEVELS.iter().zip(&results) {
        assert!(*result == results[0], "{name} at `{level}` is not what it is at `none`");
    }
}

#[test]
fn every_level_generates_the_same_images() {
    for (name, model) in [("flux", MODEL.to_string()), ("sd", model(MAKES))] {
        let prompts = ["--prompt", "a cat", "--prompt", "a house", "--count", "2", "--steps", "3"];
        same_at_every_level(name, &[&["generate", "--model", &model][..], &prompts].concat());
    }
}

#[test]
fn every_level_edits_the_same_way() {
    let image = draw(&WORKSHOP.join("image.png"), 64, 64, 1);
    let arguments = ["edit", "--model", &model(EDITS), "--image", &image, "--instruction", "more red", "--steps", "3"];
    same_at_every_level("edit", &arguments);
}

#[test]
fn every_level_trains_the_same_adapter() {
    let settings = ["training.max_steps=12", "lora.dropout=0.1", "validation.prompts=['a cat']", "validation.steps=2"];
    let runs = LEVELS.map(|level| {
        let level = format!("memory.level={level}");
        let more: Vec<_> = settings.iter().copied().chain([level.as_str()]).collect();
        train(&WORKSHOP, &level, &more)
    });
    let result = |run: &Path| {
        let checkpoint = run.join("step-000012");
        let names = ["adapter.safetensors", "optimizer.safetensors"];
        (names.map(|name| tensors(checkpoint.join(name))), files(&run.join("samples")))
    };
    let expected = result(&runs[0]);
    for (level, run) in LEVELS.iter().zip(&runs) {
        assert!(result(run) == expected, "what was trained at `{level}` is not what it is at `none`");
    }
}

#[test]
fn a_run_resumes_at_another_level_bit_for_bit() {
    let whole = train(&WORKSHOP, "whole", &["training.max_steps=6"]);
    let half = train(&WORKSHOP, "half", &["training.max_steps=3", "memory.level=none"]);
    let mut arguments =
        with_overrides("train", &overrides(&WORKSHOP, "half", &["training.max_steps=6", "memory.level=ultra"]));
    arguments.extend(["--resume".to_string(), half.to_str().unwrap().to_string()]);
    succeeds(&arguments);
    for name in ["adapter.safetensors", "optimizer.safetensors"] {
        let [one, other] = [&whole, &half].map(|run| tensors(run.join("step-000006").join(name)));
        assert!(one == other, "{name}");
    }
    // The level of the run is its own business; that of a validation, too.
    let (table, _) = succeeds(&["validate", half.to_str().unwrap(), "--memory", "aggressive"]);
    assert!(table.contains("best: "), "{table}");
}

#[test]
fn weights_that_are_trained_stay_on_the_device() {
    let settings = ["run.name=full", "memory.level=aggressive"].map(String::from);
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<_> = ["train", "--config", TINY_EDIT].into_iter().chain(settings).collect();
    let said = fails(&arguments);
    assert!(said.contains("`memory.level`: `aggressive`") && said.contains("`balanced`"), "{said}");
}

/// The amount that a plan says for its largest phase, and its level.
fn planned(table: &str) -> (String, f64) {
    let level = table.split("memory at level `").nth(1).unwrap().split('`').next().unwrap();
    let most = table.lines().find(|line| line.ends_with("(the most)")).unwrap();
    let number = most.trim_end_matches("(the most)").split_whitespace().last().unwrap();
    (level.into(), number.parse().unwrap())
}

#[test]
fn a_dry_run_shows_the_memory_of_a_run_and_leaves_nothing_behind() {
    let workshop = workshop("levels_dry");
    let mut arguments = with_overrides("train", &overrides(&workshop, "dry", &["validation.prompts=['a cat']"]));
    arguments.push("--dry-run".into());
    let (said, _) = succeeds(&arguments);
    for part in [
        "rank = 8",
        "images: 9 of 48×80, 8 of 64×64, 7 of 80×48; 5 held out",
        "to encode first: 24 images, ",
        "trainable parameters: ",
        "training step",
        "moments of AdamW",
        "validation: decode",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(planned(&said).0, "none", "a small model fits");
    assert_eq!(std::fs::read_dir(&workshop).unwrap().count(), 0, "nothing is written");
}

#[test]
fn auto_takes_the_first_level_that_fits_and_says_so() {
    let plan = |limit: &str| {
        succeeds(&[
            "generate",
            "--model",
            MODEL,
            "--prompt",
            "a cat",
            "--width",
            "64",
            "--height",
            "64",
            "--memory-limit",
            limit,
            "--output",
            "no-folder",
            "--dry-run",
        ])
    };
    let megabytes = |level: &str| {
        let arguments =
            ["generate", "--model", MODEL, "--prompt", "a", "--width", "64", "--height", "64", "--memory", level];
        let (table, _) = succeeds(&[&arguments[..], &["--output", "no-folder", "--dry-run"]].concat());
        let table = planned(&table);
        assert_eq!(table.0, level);
        table.1
    };
    let needs = LEVELS.map(megabytes);
    assert!(needs.windows(2).all(|pair| pair[0] >= pair[1]), "{needs:?}");
    let (table, _) = plan("8GiB");
    assert_eq!(planned(&table).0, "none");
    let said =
        fails(&["generate", "--model", MODEL, "--prompt", "a cat", "--memory-limit", "10KB", "--output", "no-folder"]);
    assert!(said.contains("`--memory`: even `ultra` needs ") && said.contains("raise `--memory-limit`"), "{said}");
    assert!(!Path::new("no-folder").exists());
}
