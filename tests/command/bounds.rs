//! Every count, size and step has a bound, and damaged files are errors that name them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::program::{MODEL, TINY_EDIT, copy, fails, overrides, with_overrides, workshop};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("inputs-bounds"));

const HUGE: [&str; 4] = ["4294967295", "4294967296", "9223372036854775807", "9223372036854775808"];

/// A command that must fail within seconds and name the `option`.
#[track_caller]
fn refused(arguments: &[impl AsRef<str>], option: &str) {
    let started = Instant::now();
    let said = fails(arguments);
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    assert!(said.contains(option), "{arguments:?}: {said}");
    assert!(started.elapsed() < Duration::from_secs(10), "{arguments:?} took {:?}", started.elapsed());
}

#[test]
fn numbers_on_the_command_line_beyond_all_bounds_are_refused_at_once() {
    let output = WORKSHOP.join("never");
    let output = output.to_str().unwrap();
    for model in [MODEL, "tests/fixtures/tiny-sd"] {
        let generate = ["generate", "--model", model, "--prompt", "a", "--prompt", "b", "--output", output];
        for number in HUGE {
            for option in ["--steps", "--count", "--batch-size", "--width", "--height"] {
                refused(&[&generate[..], &[option, number]].concat(), option);
            }
        }
        refused(&[&generate[..], &["--count", "60000"]].concat(), "--count"); // for two prompts
    }
    for number in HUGE {
        let edit = [
            "edit",
            "--model",
            "tests/fixtures/ip2p",
            "--image",
            "checkpoints/quickstart-data.png",
            "--instruction",
            "x",
        ];
        for option in ["--steps", "--count", "--batch-size"] {
            refused(&[&edit[..], &["--output", output, option, number]].concat(), option);
        }
        let batch = ["batch", "tests/fixtures/pictures", "--model", MODEL, "--prompt", "x", "--output", output];
        for option in ["--steps", "--batch-size"] {
            refused(&[&batch[..], &[option, number]].concat(), option);
        }
        for option in ["--size", "--batch", "--rank", "--repeats"] {
            refused(&["bench", "--small", "--only", "train", option, number], option);
        }
        refused(&["bench", "--small", "--only", "train", "--layers", &format!("{number},1")], "--layers");
    }
    assert!(!Path::new(output).exists());
}

#[test]
fn numbers_in_a_configuration_beyond_all_bounds_are_refused_at_once() {
    for key in [
        "training.max_steps",
        "training.gradient_accumulation",
        "data.batch_size",
        "data.repeats",
        "data.resolution",
        "data.bucket_step",
        "lora.rank",
        "validation.steps",
        "validation.width",
        "validation.height",
    ] {
        for number in ["4294967295", "9223372036854775807"] {
            let setting = format!("{key}={number}");
            refused(&with_overrides("train", &overrides(&WORKSHOP, "never", &[&setting])), key);
        }
    }
    let seeds = format!("validation.seeds={:?}", (0..1001).collect::<Vec<_>>());
    refused(&with_overrides("train", &overrides(&WORKSHOP, "never", &[&seeds])), "validation.seeds");
    let editing = ["train", "--config", TINY_EDIT, "--set", "validation.steps=4294967295"];
    refused(&editing, "validation.steps");
    assert!(!WORKSHOP.join("runs").exists());
}

/// A copy of a model with a change to a JSON file of it.
fn changed(model: &str, name: &str, file: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = WORKSHOP.join(name);
    copy(model, &folder);
    let path = folder.join(file);
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
    folder
}

/// The smallest command that needs all of a model.
fn generate(model: &Path) -> Vec<String> {
    let arguments =
        ["generate", "--model", model.to_str().unwrap(), "--prompt", "x y", "--width", "32", "--height", "32"];
    let output = WORKSHOP.join("nothing");
    let more = ["--steps", "1", "--output", output.to_str().unwrap()];
    arguments.iter().chain(&more).map(|argument| argument.to_string()).collect()
}

#[test]
fn sizes_in_a_models_files_are_bounded_before_anything_is_made_of_them() {
    let cases = [
        (MODEL, "transformer/config.json", "num_layers", json!(4_294_967_295u32)),
        (MODEL, "transformer/config.json", "num_single_layers", json!(1_000_000)),
        (MODEL, "transformer/config.json", "num_attention_heads", json!(0)),
        (
            MODEL,
            "transformer/config.json",
            "axes_dims_rope",
            json!([9_223_372_036_854_775_808u64, 9_223_372_036_854_775_808u64, 32]),
        ),
        (MODEL, "text_encoder/config.json", "num_hidden_layers", json!(4_294_967_295u32)),
        (MODEL, "text_encoder/config.json", "hidden_size", json!(0)),
        (MODEL, "text_encoder_2/config.json", "num_layers", json!(4_294_967_295u32)),
        (MODEL, "text_encoder_2/config.json", "num_heads", json!(0)),
        (MODEL, "text_encoder_2/config.json", "relative_attention_num_buckets", json!(0)),
        (MODEL, "vae/config.json", "layers_per_block", json!(4_294_967_295u32)),
        (MODEL, "vae/config.json", "latent_channels", json!(0)),
        (MODEL, "vae/config.json", "out_channels", json!(1)),
        (MODEL, "scheduler/scheduler_config.json", "num_train_timesteps", json!(4_294_967_295u32)),
        (MODEL, "scheduler/scheduler_config.json", "max_image_seq_len", json!(256)),
        ("tests/fixtures/tiny-sd", "unet/config.json", "layers_per_block", json!(4_294_967_295u32)),
        ("tests/fixtures/tiny-sd", "unet/config.json", "cross_attention_dim", json!(0)),
        ("tests/fixtures/tiny-sd", "scheduler/scheduler_config.json", "num_train_timesteps", json!(4_294_967_295u32)),
        ("tests/fixtures/tiny-sd", "tokenizer/tokenizer_config.json", "model_max_length", json!(-1)),
        ("tests/fixtures/tiny-sd", "tokenizer/tokenizer_config.json", "padding_side", json!("left")),
    ];
    for (number, (model, file, key, value)) in cases.into_iter().enumerate() {
        let folder = changed(model, &format!("size-{number}"), file, |fields| fields[key] = value.clone());
        let started = Instant::now();
        let said = fails(&generate(&folder));
        let name = file.rsplit('/').next().unwrap();
        assert!(said.contains(name) || said.contains("vae"), "{file} {key}: {said}");
        assert!(started.elapsed() < Duration::from_secs(10), "{file} {key} took {:?}", started.elapsed());
    }
}

#[test]
fn a_tokenizer_with_ids_or_parts_that_cannot_be_is_named() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change); 4] = [
        (MODEL, "tokenizer_2", |file| file["post_processor"]["special_tokens"]["</s>"]["ids"] = json!([99_999_999])),
        ("tests/fixtures/tiny-sd", "tokenizer", |file| file["post_processor"]["cls"][1] = json!(4_000_000_000u32)),
        ("tests/fixtures/tiny-sd", "tokenizer", |file| file["post_processor"]["sep"][1] = json!(60_000)),
        ("tests/fixtures/tiny-sd", "tokenizer", |file| file["model"]["vocab"] = json!({})),
    ];
    for (number, (model, tokenizer, change)) in cases.into_iter().enumerate() {
        let folder = changed(model, &format!("tokenizer-{number}"), &format!("{tokenizer}/tokenizer.json"), change);
        let said = fails(&generate(&folder));
        assert!(said.contains(&format!("/{tokenizer}")), "{number}: {said}");
    }
}

#[test]
fn many_images_take_no_more_memory_than_a_batch() {
    // A hundred images of 256² at once would take several times the limit.
    let output = WORKSHOP.join("many.safetensors");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd");
    let line = format!(
        "ulimit -v 4000000; exec '{}' -q generate --model '{}' --prompt x --count 64 --steps 1 --width 256 --height 256 --latents '{}'",
        env!("CARGO_BIN_EXE_kiln"),
        model.display(),
        output.display()
    );
    let result = Command::new("sh").args(["-c", &line]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn a_header_of_a_million_tensors_is_read_in_seconds_and_a_few_times_its_size() {
    let path = WORKSHOP.join("million.safetensors");
    let entry = |i: usize| format!(r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
    let header = format!("{{{}}}", (0..1_000_000).map(entry).collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + 1_000_000, 0);
    fs::write(&path, &bytes).unwrap();
    let started = Instant::now();
    // Twelve times the file, program and thread stacks included.
    let line = format!(
        "ulimit -v {}; exec '{}' inspect '{}'",
        bytes.len() / 1024 * 12 + 600_000,
        env!("CARGO_BIN_EXE_kiln"),
        path.display()
    );
    let result = Command::new("sh").args(["-c", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&result.stdout);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assert!(said.contains("1000000"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed()); // 2 on a machine that does nothing else
    let said = fails(
        &[
            &["generate", "--model", MODEL, "--prompt", "p", "--steps", "1"][..],
            &["--lora", path.to_str().unwrap(), "--output", "never"],
        ]
        .concat(),
    );
    assert!(said.contains("million.safetensors") && said.len() < 5000, "{said}");
    fs::remove_file(path).unwrap();
}
