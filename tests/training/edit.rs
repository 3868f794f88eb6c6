//! The tiny editing configuration as a user goes through it: prepare, train, resume, validate, export.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use burn::tensor::{Device, TensorData};
use kiln::{
    error::Result,
    models::unet::UNet,
    training::{self, Metrics, Record, Silent, TrainConfig, ValidationMetrics},
};

use crate::support::program::{TINY_EDIT, copy, fails, succeeds, tensors, workshop};

/// The folder of this file's runs; its cache is filled.
static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("train_edit");
    succeeds(&command("prepare", &settings_in(&workshop, "any", &["data.flip=true"])));
    workshop
});

/// The arguments of a command with the tiny editing configuration and these settings.
fn command(name: &str, settings: &[String]) -> Vec<String> {
    let settings = settings.iter().flat_map(|setting| ["--set".to_string(), setting.clone()]);
    [name, "--config", TINY_EDIT].map(String::from).into_iter().chain(settings).collect()
}

fn settings(name: &str, more: &[&str]) -> Vec<String> {
    settings_in(&WORKSHOP, name, more)
}

/// The tiny editing configuration, shorter, in a workshop. Later settings win.
fn settings_in(workshop: &Path, name: &str, more: &[&str]) -> Vec<String> {
    let mut all = vec![
        format!("run.name={name}"),
        format!("run.output='{}'", workshop.join("runs").display()),
        format!("data.cache='{}'", workshop.join("cache").display()),
    ];
    let short = [
        "training.max_steps=6",
        "training.log_every=1",
        "checkpoint.every=2",
        "checkpoint.keep_last=0",
        "validation.every=0",
        "validation.steps=2",
        "validation.edits=0",
        "validation.timesteps=[300, 700]",
    ];
    all.extend(short.iter().chain(more).map(|setting| setting.to_string()));
    all
}

fn config(name: &str, more: &[&str]) -> TrainConfig {
    TrainConfig::load(TINY_EDIT, &settings(name, more)).unwrap()
}

fn train(config: &TrainConfig, resume: Option<&Path>) -> Result<PathBuf> {
    training::train(config, resume, &Device::flex(), &mut Silent)
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn validations(run: &Path) -> Vec<ValidationMetrics> {
    let validation = |record| match record {
        Record::Validation(metrics) => Some(metrics),
        Record::Step(_) => None,
    };
    Metrics::read(run).unwrap().into_iter().filter_map(validation).collect()
}

/// What everything after a step depends on, every bit.
fn state(run: &Path, step: u64, files: &[&str]) -> Vec<Vec<(String, TensorData)>> {
    let folder = run.join(format!("step-{step:06}"));
    files.iter().map(|name| tensors(folder.join(name).with_extension("safetensors"))).collect()
}

const FULL: [&str; 3] = ["weights", "ema", "optimizer"];

/// All that draws random numbers or counts across steps is on.
const EVERYTHING: [&str; 7] = [
    "training.gradient_accumulation=2",
    "data.batch_size=2",
    "data.flip=true",
    "data.conditioning_dropout=0.2",
    "objective.snr_gamma=5",
    "objective.noise_offset=0.1",
    "training.ema_decay=0.9",
];

/// A run with everything on that nothing interrupts.
static WHOLE: LazyLock<PathBuf> = LazyLock::new(|| train(&config("whole", &EVERYTHING), None).unwrap());

#[test]
fn the_held_out_loss_falls_and_a_run_folder_holds_everything() {
    let more = ["training.max_steps=40", "checkpoint.every=40", "validation.edits=3", "validation.every=20"];
    let run = train(&config("falls", &more), None).unwrap();
    let expected = ["config.toml", "metrics.jsonl", "model", "samples", "started.json", "step-000040", "tensorboard"];
    assert_eq!(names(&run), expected.map(String::from).into());
    let expected = ["ema.safetensors", "optimizer.safetensors", "state.json", "weights.safetensors"];
    assert_eq!(names(&run.join("step-000040")), expected.map(String::from).into());
    let losses = validations(&run);
    assert_eq!(losses.iter().map(|v| v.step).collect::<Vec<_>>(), [0, 20, 40]);
    assert!(losses[2].validation_loss < losses[0].validation_loss, "{losses:?}");
    assert_eq!(losses[0].validation_loss_at_level.keys().collect::<Vec<_>>(), ["300", "700"]);
    // Three pairs: original, edit, target.
    let grid = image::open(run.join("samples/step-000040.png")).unwrap();
    assert_eq!((grid.width(), grid.height()), (3 * 68 + 4, 3 * 68 + 4));
}

#[test]
fn a_full_run_continued_from_its_folder_is_the_uninterrupted_run_bit_for_bit() {
    let half: Vec<_> = EVERYTHING.iter().chain(&["training.max_steps=4"]).copied().collect();
    let run = train(&config("half", &half), None).unwrap();
    assert_eq!(state(&run, 4, &FULL), state(&WHOLE, 4, &FULL));
    train(&config("half", &EVERYTHING), Some(&run)).unwrap();
    assert_eq!(state(&run, 6, &FULL), state(&WHOLE, 6, &FULL));
}

#[test]
fn a_lengthened_run_replaces_its_earlier_export() {
    let run = train(&config("longer", &["training.max_steps=2"]), None).unwrap();
    let before = tensors(run.join("model/unet/diffusion_pytorch_model.safetensors"));
    train(&config("longer", &["training.max_steps=4"]), Some(&run)).unwrap();
    assert_ne!(tensors(run.join("model/unet/diffusion_pytorch_model.safetensors")), before);
}

#[test]
fn keeping_all_activations_gives_the_same_bits_as_keeping_one_block() {
    let more: Vec<_> = EVERYTHING.iter().chain(&["training.activations=full"]).copied().collect();
    let full = train(&config("full", &more), None).unwrap();
    assert_eq!(state(&full, 6, &FULL), state(&WHOLE, 6, &FULL));
}

#[test]
fn validation_does_not_change_what_is_trained() {
    let more = ["validation.every=1", "validation.edits=1"];
    let more: Vec<_> = EVERYTHING.iter().chain(&more).copied().collect();
    let validated = train(&config("validated", &more), None).unwrap();
    assert_eq!(state(&validated, 6, &FULL), state(&WHOLE, 6, &FULL));
}

#[test]
fn a_model_from_random_weights_has_the_tensors_of_one_that_diffusers_wrote() {
    // Projections as 1×1 convolutions, as in Stable Diffusion 1, and as matrices, as in 2.
    for linear in [false, true] {
        let bare = WORKSHOP.join(format!("bare-{linear}"));
        copy("tests/fixtures/tiny-sd", &bare);
        std::fs::remove_file(bare.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
        let path = bare.join("unet/config.json");
        let mut unet: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(unet["use_linear_projection"], false);
        unet["use_linear_projection"] = linear.into();
        std::fs::write(&path, unet.to_string()).unwrap();
        let base = format!("model.path='{}'", bare.display());
        let more = ["model.init=random", "training.max_steps=1", &base];
        let run = train(&config(&format!("random-{linear}"), &more), None).unwrap();
        let file = "unet/diffusion_pytorch_model.safetensors";
        let shapes = |file: PathBuf| -> Vec<_> {
            tensors(file).into_iter().map(|(name, data)| (name, data.shape.to_vec())).collect()
        };
        let expected = shapes(Path::new("tests/fixtures/tiny-sd").join(file)).into_iter().map(|(name, mut shape)| {
            match name.as_str() {
                "conv_in.weight" => shape[1] = 8,
                name if linear && name.contains(".proj_") => shape.truncate(2),
                _ => (),
            }
            (name, shape)
        });
        assert_eq!(shapes(run.join("model").join(file)), expected.collect::<Vec<_>>());
    }
}

#[test]
fn the_finished_model_is_the_ema_and_the_raw_weights_can_be_exported() {
    let folder = WORKSHOP.join("exports");
    std::fs::create_dir_all(&folder).unwrap();
    let (run, raw) = (WHOLE.to_str().unwrap(), folder.join("raw"));
    succeeds(&["export", run, "--output", raw.to_str().unwrap(), "--raw"]);
    let numbers = |folder: &Path| -> Vec<Vec<f32>> {
        let file = folder.join("unet/diffusion_pytorch_model.safetensors");
        tensors(file).into_iter().map(|(_, data)| data.into_vec().unwrap()).collect()
    };
    let of = |file: &str| -> Vec<Vec<f32>> {
        state(&WHOLE, 6, &[file]).remove(0).into_iter().map(|(_, data)| data.into_vec().unwrap()).collect()
    };
    assert_eq!(numbers(&WHOLE.join("model")), of("ema"));
    assert_eq!(numbers(&raw), of("weights"));
    assert_ne!(of("ema"), of("weights"));
    let unet = UNet::open(raw.join("unet"), &Device::flex(), None).unwrap();
    assert_eq!(unet.config.in_channels, 8);
    // What it exported can be trained further, by an adapter too.
    let base = format!("model.path='{}'", WHOLE.join("model").display());
    let lora = ["training.mode=lora", "lora.rank=2", "training.ema_decay=0.9", &base];
    let run = train(&config("adapter", &lora), None).unwrap();
    assert!(run.join("adapter.safetensors").is_file());
    // Under the names that all programs read, not only diffusers.
    let kohyas = |(name, _): &(String, TensorData)| name.starts_with("lora_unet_");
    assert!(tensors(run.join("adapter.safetensors")).iter().all(kohyas));
    let again = train(&config("adapter-half", &[&lora[..], &["training.max_steps=4"]].concat()), None).unwrap();
    let again = train(&config("adapter-half", &lora), Some(&again)).unwrap();
    let files = ["adapter", "ema", "optimizer"];
    assert_eq!(state(&again, 6, &files), state(&run, 6, &files));
}

#[test]
fn an_adapter_of_an_editing_model_is_refused_by_one_that_only_makes_images() {
    let base = WHOLE.join("model").to_str().unwrap().to_string();
    let lora = ["training.mode=lora", "lora.rank=2", "training.max_steps=2", &format!("model.path='{base}'")];
    let run = train(&config("attached", &lora), None).unwrap().to_str().unwrap().to_string();
    let at = |name: &str| WORKSHOP.join(name).to_str().unwrap().to_string();
    for format in ["diffusers", "kohya"] {
        let (file, out) = (at(&format!("{format}.safetensors")), at(&format!("attached-{format}")));
        succeeds(&["export", &run, "--output", &file, "--format", format]);
        let use_it = ["--lora", &file, "--steps", "1", "--output", &out];
        let edit = ["edit", "--model", &base, "--image", "tests/fixtures/picture-edits/original", "--instruction", "x"];
        succeeds(&[&edit[..], &use_it].concat());
        let generate = ["generate", "--model", "tests/fixtures/tiny-sd", "--prompt", "x"];
        let said = fails(&[&generate[..], &use_it].concat());
        let expected = "is for a UNet with 8 input channels, and the UNet of tests/fixtures/tiny-sd has 4";
        // The file names the base model, not the folders that it is in.
        for part in [&file, expected, "hint: use it with its base model, model,"] {
            assert!(said.contains(part), "`{part}` in {said}");
        }
    }
    let said = fails(&["export", &run, "--output", &at("no.safetensors"), "--model", "tests/fixtures/tiny-sd"]);
    assert!(said.contains("`--model`: applies to fully trained models"), "{said}");
}

#[test]
fn a_whole_model_is_exported_only_onto_the_base_that_the_run_started_from() {
    let at = |name: &str| WORKSHOP.join(name).to_str().unwrap().to_string();
    let (base, output) = (at("moved-base"), at("onto-moved"));
    copy("tests/fixtures/tiny-sd", &base);
    let export = ["export", WHOLE.to_str().unwrap(), "--output", &output, "--model", &base];
    succeeds(&export);
    assert_eq!(names(Path::new(&output)), names(&WHOLE.join("model")));
    std::fs::remove_dir_all(&output).unwrap();

    let config = Path::new(&base).join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text} ")).unwrap();
    let said = fails(&export);
    let expected = "moved-base: the base model is not the one that the run was started with";
    assert!(said.contains(expected) && said.contains("hint: tell where that model is now with `--model`"), "{said}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn validate_repeats_the_losses_of_training() {
    let (json, _) = succeeds(&["validate", WHOLE.to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["level"], "timestep");
    let rows: Vec<_> = report["checkpoints"].as_array().unwrap().iter().collect();
    assert_eq!(rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4, 6]);
    let trained = validations(&WHOLE);
    for (step, row) in [(0, rows[0]), (6, rows[3])] {
        let loss = trained.iter().find(|v| v.step == step).unwrap().validation_loss;
        assert_eq!(row["loss"].as_f64().unwrap(), loss);
    }
}

#[test]
fn validate_draws_the_curve_of_the_paper_with_a_clip_model() {
    let run = train(&config("curve", &["training.max_steps=2", "validation.edits=2"]), None).unwrap();
    let run = run.to_str().unwrap();
    let clip = "tests/fixtures/clip";
    let (json, _) = succeeds(&["validate", run, "--clip", clip, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let curve = &report["curve"];
    assert_eq!((curve["edits"].as_u64(), curve["text_guidance"].as_f64()), (Some(2), Some(7.5)));
    let points = curve["points"].as_array().unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let guidances: Vec<_> = points.iter().map(|point| number(&point["image_guidance"])).collect();
    assert_eq!(guidances, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2]);
    for point in points.iter().chain([&curve["target"]]) {
        assert!(number(&point["image_similarity"]).abs() <= 1.0, "{point}");
        assert!(number(&point["directional_similarity"]).abs() <= 1.0, "{point}");
    }
    assert_ne!(points[0]["image_similarity"], points[6]["image_similarity"]);
    assert!(curve["target"]["image_guidance"].is_null());
    let (table, _) = succeeds(&["validate", run, "--clip", clip]);
    assert!(table.contains("directional similarity") && table.contains("target"), "{table}");
    let said = fails(&["validate", run, "--clip", "datasets"]);
    assert!(said.contains("config.json"), "{said}");
    let said = fails(&["validate", WHOLE.to_str().unwrap(), "--clip", clip]);
    assert!(said.contains("validation.edits"), "{said}");
}

#[test]
fn settings_that_do_not_suit_the_model_are_one_clear_error() {
    let says = |more: &[&str], expected: &str| {
        let said = fails(&command("train", &settings("bad", more)));
        assert!(said.contains(expected), "{said}");
    };
    says(&["training.mode=lora"], "point `model.path` at an editing model");
    says(&["model.dtype=bf16"], "`model.dtype`");
    says(&["objective.guidance=2.0"], "`objective.guidance`: unknown key `guidance`");
    says(&["objective.kind=flow_matching"], "hint: write `kind = \"instruct_pix2pix\"` in `[objective]`");
    says(&["data.caption_dropout=0.3"], "`data.caption_dropout`");
    says(&["validation.steps=1000"], "`validation.steps`");
    says(&["validation.prompts=['a cat']"], "`validation.prompts`");
    says(&["validation.timesteps=[1000]"], "`validation.timesteps`");
    says(&["objective.snr_gamma=-1"], "`objective.snr_gamma`");
    says(
        &["edit.snr_gamma=5"],
        "hint: write `--set objective.kind=\"instruct_pix2pix\"` `--set objective.snr_gamma=5`",
    );
}
