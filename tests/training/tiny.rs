//! The tiny configuration as a user goes through it: prepare, train, validate, export, inspect.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::SystemTime,
};

use kiln::{
    lora::{Lora, LoraLayer},
    training::{Metrics, Record, TrainConfig, ValidationMetrics},
    weights::TensorFile,
};

use crate::support::program::{overrides, succeeds, tensors, train, with_overrides, workshop};

/// The folder of this file's runs; its cache is filled.
static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("train_tiny");
    let prompts = "validation.prompts=['a red circle on white', 'a blue square on yellow']";
    succeeds(&with_overrides("prepare", &overrides(&workshop, "any", &[prompts])));
    workshop
});

/// A run with everything on, from which several tests read.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let more = [
        "training.max_steps=30",
        "training.log_every=5",
        "checkpoint.every=10",
        "checkpoint.keep_last=2",
        "validation.every=10",
        "validation.prompts=['a red circle on white', 'a blue square on yellow']",
        "validation.steps=2",
        "validation.sigmas=[0.3, 0.7]",
    ];
    train(&WORKSHOP, "whole", &more)
});

fn validations(run: &Path) -> Vec<ValidationMetrics> {
    let validation = |record| match record {
        Record::Validation(metrics) => Some(metrics),
        Record::Step(_) => None,
    };
    Metrics::read(run).unwrap().into_iter().filter_map(validation).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_run_folder_holds_everything_and_the_held_out_loss_falls() {
    let run = &*RUN;
    let expected = [
        "config.toml",
        "metrics.jsonl",
        "samples",
        "started.json",
        "step-000020",
        "step-000030",
        "tensorboard",
        "whole.safetensors",
    ];
    assert_eq!(names(run), expected.map(String::from).into());
    for checkpoint in ["step-000020", "step-000030"] {
        let expected = ["adapter.safetensors", "optimizer.safetensors", "state.json"];
        assert_eq!(names(&run.join(checkpoint)), expected.map(String::from).into());
    }
    let grids = ["step-000000.png", "step-000010.png", "step-000020.png", "step-000030.png"];
    assert_eq!(names(&run.join("samples")), grids.map(String::from).into());
    // Two prompts below each other; for each of two seeds an image without and one with the adapter.
    let grid = image::open(run.join("samples/step-000030.png")).unwrap();
    assert_eq!((grid.width(), grid.height()), (4 * 68 + 4, 2 * 68 + 4));
    assert_ne!(grid, image::open(run.join("samples/step-000000.png")).unwrap());
    assert_eq!(names(&run.join("tensorboard")).len(), 1);

    let config = TrainConfig::load(run.join("config.toml"), &[]).unwrap();
    assert_eq!((config.training.max_steps, config.lora.rank, config.run.name.as_str()), (30, 8, "whole"));
    let steps = Metrics::read(run).unwrap().into_iter().filter_map(|record| match record {
        Record::Step(metrics) => Some(metrics),
        Record::Validation(_) => None,
    });
    for (metrics, step) in steps.zip((5..=30).step_by(5)) {
        assert_eq!((metrics.step, metrics.learning_rate), (step, 1e-3));
        assert!(metrics.loss.is_finite() && metrics.grad_norm > 0.0 && metrics.seconds_per_step > 0.0, "{metrics:?}");
    }
    let losses = validations(run);
    assert_eq!(losses.iter().map(|v| v.step).collect::<Vec<_>>(), [0, 10, 20, 30]);
    assert!(losses[3].validation_loss < losses[0].validation_loss, "{losses:?}");
    assert_eq!(losses[0].validation_loss_at_level.keys().collect::<Vec<_>>(), ["0.3", "0.7"]);
}

#[test]
fn the_same_configuration_again_gets_a_folder_of_its_own_and_the_same_adapter() {
    let runs = [0, 1].map(|_| train(&WORKSHOP, "again", &[]));
    assert_eq!(runs, ["again", "again-2"].map(|name| WORKSHOP.join("runs").join(name)));
    let [one, other] = runs.map(|run| tensors(run.join("step-000003/adapter.safetensors")));
    assert_eq!(one, other);
    let seeded = train(&WORKSHOP, "seeded", &["run.seed=1"]);
    assert_ne!(one, tensors(seeded.join("step-000003/adapter.safetensors")));
}

/// The entries below a cache folder and when they were written.
fn entries(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(entries(&entry.path()));
        } else if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            found.insert(entry.path(), entry.metadata().unwrap().modified().unwrap());
        }
    }
    found
}

#[test]
fn preparing_twice_does_nothing_the_second_time_and_a_lost_entry_is_all_that_is_made_again() {
    let cache = WORKSHOP.join("other-cache");
    let settings = overrides(&WORKSHOP, "any", &[&format!("data.cache='{}'", cache.display())]);
    let prepare = || succeeds(&with_overrides("prepare", &settings));
    let (out, err) = prepare();
    assert_eq!(out, format!("{}\n", cache.display()));
    assert!(err.contains(" 24 images and"), "{err}");
    let before = entries(&cache);
    assert!(before.len() >= 24 + 24, "{} entries", before.len());
    let (_, err) = prepare();
    assert!(err.contains(" 0 images and 0 prompts to encode"), "{err}");
    assert_eq!(entries(&cache), before);
    let lost = before.keys().next().unwrap();
    std::fs::remove_file(lost).unwrap();
    prepare();
    let mut after = entries(&cache);
    assert!(after.insert(lost.clone(), before[lost]).is_some());
    assert_eq!(after, before);
}

#[test]
fn validate_names_the_best_checkpoint_and_repeats_the_losses_of_training() {
    let run = RUN.to_str().unwrap();
    let (json, _) = succeeds(&["validate", run, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let trained: BTreeMap<u64, f64> = validations(&RUN).into_iter().map(|v| (v.step, v.validation_loss)).collect();
    let rows: Vec<(u64, f64)> = report["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap()))
        .collect();
    assert_eq!(rows, [0, 20, 30].map(|step| (step, trained[&step])));
    let best = rows.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert_eq!(report["best_step"], best);

    let (table, _) = succeeds(&["validate", run]);
    assert!(table.contains(&format!("best: step-{best:06}")), "{table}");
    assert!(["sigma 0.3", "sigma 0.7"].iter().all(|column| table.contains(column)), "{table}");
    let (json, _) = succeeds(&["validate", RUN.join("step-000020").to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["checkpoints"].as_array().unwrap().len(), 2);
    assert_eq!(report["checkpoints"][1]["loss"], trained[&20]);
}

/// `‖ΔW - ΔW'‖ / ‖ΔW‖` over all layers.
fn distance(one: &Lora, other: &Lora) -> f64 {
    let find = |name: &str| -> &LoraLayer { other.layers.iter().find(|layer| layer.name == name).unwrap() };
    let square = |t: burn::tensor::Tensor<2>| f64::from(t.square().sum().into_scalar::<f32>());
    let apart: f64 = one.layers.iter().map(|layer| square(layer.delta() - find(&layer.name).delta())).sum();
    (apart / one.layers.iter().map(|layer| square(layer.delta())).sum::<f64>()).sqrt()
}

#[test]
fn exported_files_of_every_format_and_dtype_hold_the_trained_adapter_and_say_what_they_are() {
    let adapter = Lora::read(RUN.join("step-000030/adapter.safetensors")).unwrap();
    assert!(adapter.layers.iter().all(|layer| layer.norm() > 0.0));
    let folder = WORKSHOP.join("exported");
    std::fs::create_dir_all(&folder).unwrap();
    for format in ["diffusers", "kohya", "comfyui"] {
        for (dtype, stored, allowed) in [("f32", "F32", 1e-6), ("bf16", "BF16", 4e-3), ("f16", "F16", 5e-4)] {
            let path = folder.join(format!("{format}-{dtype}.safetensors"));
            let file = path.to_str().unwrap();
            let run = RUN.to_str().unwrap();
            let (out, _) = succeeds(&["export", run, "--output", file, "--format", format, "--dtype", dtype]);
            assert_eq!(out, format!("{file}\n"));
            let lora = Lora::read(&path).unwrap();
            assert_eq!(lora.layers.len(), adapter.layers.len());
            assert!(lora.layers.iter().all(|layer| layer.scale() == 1.0), "{file}");
            assert!(distance(&adapter, &lora) < allowed, "{file}: {}", distance(&adapter, &lora));
            let tensors = TensorFile::open(&path).unwrap();
            let of_dtype = |name: &String| tensors.dtype(name).unwrap() == stored || name.ends_with(".alpha");
            assert!(tensors.names().iter().all(of_dtype), "{file}");
            let metadata = tensors.metadata();
            for key in ["kiln.config", "kiln.base_model", "kiln.base_model_fingerprint", "kiln.dataset_fingerprint"] {
                assert!(metadata.get(key).is_some_and(|value| !value.is_empty()), "{file}: {key}");
            }
            let here = env!("CARGO_MANIFEST_DIR");
            assert!(metadata.values().all(|value| !value.contains(here)), "{file} names a folder of this machine");
            assert_eq!(metadata["modelspec.architecture"], "flux-1-dev/lora");
            assert_eq!(
                (metadata["ss_base_model_version"].as_str(), metadata["ss_output_name"].as_str()),
                ("flux1", "whole")
            );
            assert_eq!(metadata["sshs_model_hash"].len(), 64);
            let (said, _) = succeeds(&["inspect", file]);
            assert!(said.contains("LoRA") && said.to_lowercase().contains(format), "{said}");
            assert!(said.contains("loads in full in diffusers, ComfyUI"), "{said}");
            let bare = folder.join("bare.safetensors");
            let bare_text = bare.to_str().unwrap();
            succeeds(&["export", run, "--output", bare_text, "--format", format, "--dtype", dtype, "--no-metadata"]);
            assert_eq!(TensorFile::open(&bare).unwrap().metadata(), [("format".to_string(), "pt".to_string())].into());
            assert!(distance(&Lora::read(&bare).unwrap(), &lora) == 0.0, "{bare_text}");
            assert_eq!(TensorFile::open(&bare).unwrap().names(), tensors.names());
        }
    }
    // The run's own export is that of its last checkpoint; another checkpoint can be asked for.
    let own = Lora::read(RUN.join("whole.safetensors")).unwrap();
    assert!(distance(&adapter, &own) < 4e-3);
    let (earlier, path) = (RUN.join("step-000020"), folder.join("earlier.safetensors"));
    succeeds(&["-q", "export", earlier.to_str().unwrap(), "--output", path.to_str().unwrap(), "--dtype", "f32"]);
    assert!(distance(&Lora::read(earlier.join("adapter.safetensors")).unwrap(), &Lora::read(&path).unwrap()) < 1e-6);
    assert!(distance(&adapter, &Lora::read(&path).unwrap()) > 0.01);
}

#[test]
fn checkpoints_are_said_to_be_what_they_are() {
    for (file, kind) in [
        ("step-000030/adapter.safetensors", "LoRA"),
        ("step-000030/optimizer.safetensors", "optimizer state"),
        ("whole.safetensors", "LoRA"),
    ] {
        let (said, _) = succeeds(&["inspect", RUN.join(file).to_str().unwrap()]);
        assert!(said.contains(kind), "{file}: {said}");
    }
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    for (keep_last, steps) in [(1, &["step-000005"][..]), (0, &["step-000002", "step-000004", "step-000005"])] {
        let keep = format!("checkpoint.keep_last={keep_last}");
        let run = train(&WORKSHOP, "keep", &["training.max_steps=5", "checkpoint.every=2", &keep]);
        let kept: Vec<_> = names(&run).into_iter().filter(|name| name.starts_with("step-")).collect();
        assert_eq!(kept, steps);
    }
}

/// Trains with these settings; returns the adapter. The loss is finite and every layer has changed.
fn learned(name: &str, settings: &[&str]) -> Lora {
    let run = train(&WORKSHOP, name, settings);
    for record in Metrics::read(&run).unwrap() {
        let finite = match &record {
            Record::Step(metrics) => metrics.loss.is_finite() && metrics.grad_norm.is_finite(),
            Record::Validation(metrics) => metrics.validation_loss.is_finite(),
        };
        assert!(finite, "{settings:?}: {record:?}");
    }
    let lora = Lora::read(run.join(format!("{name}.safetensors"))).unwrap();
    let unchanged: Vec<_> = lora.layers.iter().filter(|layer| layer.norm() == 0.0).map(|layer| &layer.name).collect();
    assert!(unchanged.is_empty(), "{settings:?}: {unchanged:?}");
    lora
}

#[test]
fn targets_are_all_layers_or_those_that_match_a_pattern() {
    let all = learned("all", &["lora.targets=all"]);
    let transformer =
        TensorFile::open("tests/fixtures/tiny-flux/transformer/diffusion_pytorch_model.safetensors").unwrap();
    let matrices = transformer.names().into_iter().filter(|name| transformer.shape(name).unwrap().len() == 2);
    assert_eq!(all.layers.len(), matrices.count());
    let some = ["lora.targets=['attn.to_q', 'single_transformer_blocks.{0,2-3}.proj_mlp', 'x_embedder']"];
    let mut names: Vec<_> = learned("some", &some).layers.into_iter().map(|layer| layer.name).collect();
    names.retain(|name| !name.ends_with("attn.to_q"));
    let expected = ["single_transformer_blocks.0", "single_transformer_blocks.2", "single_transformer_blocks.3"];
    assert_eq!(names[..3], expected.map(|block| format!("{block}.proj_mlp")));
    assert_eq!(names[3..], ["x_embedder"]);
}

#[test]
fn adapters_of_other_starts_scales_and_dropout_train() {
    learned("kaiming", &["lora.init=kaiming", "lora.rank=3", "lora.alpha=6"]);
    learned("dropout", &["lora.dropout=0.5", "training.activations=full"]);
}

#[test]
fn batches_of_every_kind_train() {
    learned("accumulated", &["training.gradient_accumulation=2", "data.batch_size=1"]);
    let more =
        ["data.caption_dropout=0.5", "data.flip=true", "data.repeats=2", "data.trigger=kln", "data.batch_size=3"];
    learned("varied", &more);
    learned("halves", &["data.cache_dtype=bf16", "model.dtype=bf16", "training.max_steps=2"]);
}

#[test]
fn every_sampling_weighting_shift_and_schedule_trains() {
    for (i, settings) in [
        [
            "objective.sampling=uniform",
            "objective.weighting=sigma_sqrt",
            "objective.shift=none",
            "schedule.name=linear",
        ],
        ["objective.sampling=mode", "objective.weighting=cosmap", "objective.shift=3", "schedule.name=cosine"],
        [
            "objective.sampling=logit_normal",
            "objective.logit_mean=0.5",
            "schedule.cycles=2",
            "schedule.name=cosine_with_restarts",
        ],
        ["objective.guidance=3.5", "optimizer.max_grad_norm=0", "schedule.power=2", "schedule.name=polynomial"],
        [
            "optimizer.betas=[0.8, 0.9]",
            "optimizer.weight_decay=0.1",
            "optimizer.epsilon=1e-6",
            "schedule.name=constant",
        ],
    ]
    .iter()
    .enumerate()
    {
        let settings: Vec<_> = settings.iter().copied().chain(["schedule.warmup_steps=1"]).collect();
        learned(&format!("objective{i}"), &settings);
    }
}
