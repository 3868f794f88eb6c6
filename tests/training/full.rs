//! All weights of FLUX.1 trained, from a model and from random weights, as a user goes through it.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use burn::tensor::{Device, TensorData};
use kiln::{
    error::Result,
    lending::Residence,
    models::flux::FluxTransformer,
    nn::Parameters,
    rng::Seed,
    training::{self, Metrics, Record, Silent, TrainConfig},
};

use crate::support::program::{MODEL, TINY_FLUX, copy, fails, overrides, succeeds, tensors, with_overrides, workshop};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("train_full");
    // The model without the weights of its transformer.
    let bare = workshop.join("bare");
    copy(MODEL, &bare);
    std::fs::remove_file(bare.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    succeeds(&with_overrides("prepare", &overrides(&workshop, "any", &["data.flip=true"])));
    workshop
});

/// All that draws random numbers or counts across steps is on.
const EVERYTHING: [&str; 9] = [
    "training.mode=full",
    "training.ema_decay=0.9",
    "training.gradient_accumulation=2",
    "training.max_steps=4",
    "data.batch_size=2",
    "data.flip=true",
    "data.caption_dropout=0.4",
    "checkpoint.every=2",
    "checkpoint.keep_last=0",
];

fn config(name: &str, more: &[&str]) -> TrainConfig {
    let settings: Vec<_> = EVERYTHING.iter().chain(more).copied().collect();
    TrainConfig::load(TINY_FLUX, &overrides(&WORKSHOP, name, &settings)).unwrap()
}

fn train(config: &TrainConfig, resume: Option<&Path>) -> Result<PathBuf> {
    training::train(config, resume, &Device::flex(), &mut Silent)
}

/// The setting that names the model without weights.
fn bare() -> String {
    format!("model.path='{}'", WORKSHOP.join("bare").display())
}

/// A run from random weights that nothing interrupts.
static WHOLE: LazyLock<PathBuf> =
    LazyLock::new(|| train(&config("whole", &["model.init=random", &bare()]), None).unwrap());

/// What everything after a step depends on, every bit.
fn state(run: &Path, step: u64) -> Vec<Vec<(String, TensorData)>> {
    let folder = run.join(format!("step-{step:06}"));
    ["weights", "ema", "optimizer"]
        .iter()
        .map(|name| tensors(folder.join(name).with_extension("safetensors")))
        .collect()
}

fn losses(run: &Path) -> Vec<f64> {
    let loss = |record| match record {
        Record::Step(metrics) => Some(metrics.loss),
        Record::Validation(_) => None,
    };
    Metrics::read(run).unwrap().into_iter().filter_map(loss).collect()
}

#[test]
fn a_run_from_random_weights_continued_from_its_folder_is_the_uninterrupted_run_bit_for_bit() {
    let settings = ["model.init=random", &bare()];
    let run = train(&config("half", &[&settings[..], &["training.max_steps=2"]].concat()), None).unwrap();
    assert_eq!(state(&run, 2), state(&WHOLE, 2));
    train(&config("half", &settings), Some(&run)).unwrap();
    assert_eq!(state(&run, 4), state(&WHOLE, 4));
}

#[test]
fn keeping_all_activations_gives_the_same_bits_as_keeping_one_block() {
    let full = train(&config("full", &["model.init=random", "training.activations=full", &bare()]), None).unwrap();
    assert_eq!(state(&full, 4), state(&WHOLE, 4));
}

#[test]
fn a_run_resumed_with_its_ema_in_host_memory_is_the_same_bit_for_bit() {
    let bare = bare();
    let more = ["model.init=random", "validation.every=1", &bare];
    let with = |settings: &[&'static str]| config("hosted", &[&more[..], settings].concat());
    let run = train(&with(&["training.max_steps=2", "memory.level=none"]), None).unwrap();
    train(&with(&["memory.level=balanced"]), Some(&run)).unwrap();
    assert_eq!(state(&run, 4), state(&WHOLE, 4));
}

#[test]
fn validation_does_not_change_what_is_trained() {
    let more =
        ["validation.every=1", "validation.prompts=['a cat']", "validation.steps=1", "validation.true_guidance=3"];
    let bare = bare();
    let settings = [&["model.init=random", &bare], &more[..]].concat();
    let validated = train(&config("validated", &settings), None).unwrap();
    assert_eq!(state(&validated, 4), state(&WHOLE, 4));
    // The image of each seed alone: there is no adapter to compare it without.
    let grid = image::open(validated.join("samples/step-000004.png")).unwrap();
    assert_eq!((grid.width(), grid.height()), (2 * 68 + 4, 68 + 4));
}

#[test]
fn every_tensor_of_the_transformer_is_trained() {
    let of = |folder: PathBuf| tensors(folder.join("diffusion_pytorch_model.safetensors"));
    let run = train(&config("tuned", &[]), None).unwrap();
    let (before, after) = (of(Path::new(MODEL).join("transformer")), of(run.join("model/transformer")));
    assert_eq!(before.len(), after.len());
    for ((name, before), (same, after)) in before.into_iter().zip(after) {
        assert_eq!(name, same);
        assert_ne!(before.convert::<f32>(), after.convert::<f32>(), "{name}");
    }
}

#[test]
fn random_weights_are_those_of_the_seed_and_the_finished_model_makes_images() {
    let run = WHOLE.to_str().unwrap();
    let model = |seed| {
        FluxTransformer::untrained(Residence::Resident, WORKSHOP.join("bare/transformer"), Seed(seed), &Device::flex())
            .unwrap()
    };
    let weights = |seed| {
        let mut all = Vec::new();
        model(seed).parameters("", &mut |_, parameter| all.push(parameter.flat().into_data()));
        all
    };
    assert_eq!(weights(0), weights(0));
    assert_ne!(weights(0), weights(1));
    // Nothing is predicted yet, so the first loss is that of the velocity itself, about 1 + the latents' square.
    assert!(losses(&WHOLE)[0] > 1.0, "{:?}", losses(&WHOLE));
    let output = WORKSHOP.join("made");
    let finished = WHOLE.join("model");
    let generate = ["generate", "--model", finished.to_str().unwrap(), "--prompt", "a cat", "--steps", "2"];
    let size = ["--width", "64", "--height", "64", "--output", output.to_str().unwrap()];
    succeeds(&[&generate[..], &size].concat());
    // Again as f16, from the checkpoint.
    let exported = WORKSHOP.join("exported");
    succeeds(&["export", run, "--output", exported.to_str().unwrap(), "--dtype", "f16"]);
    assert_eq!(
        tensors(exported.join("transformer/diffusion_pytorch_model.safetensors")).len(),
        state(&WHOLE, 4)[0].len()
    );
    assert!(succeeds(&["validate", run]).0.contains("best: step-"));
}

#[test]
fn random_weights_need_full_training_and_known_weights_need_to_be_there() {
    let random = with_overrides("train", &overrides(&WORKSHOP, "adapter", &["model.init=random"]));
    assert!(fails(&random).contains("`model.init`: must be \"pretrained\" where `training.mode` is `lora`"));
    let without = with_overrides("train", &overrides(&WORKSHOP, "without", &["training.mode=full", &bare()]));
    assert!(fails(&without).contains("lacks transformer/"));
}
