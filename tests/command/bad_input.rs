//! Files and settings that cannot be used: one clear error each, which names its subject and, usually, the next step.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use burn::tensor::TensorData;
use kiln::weights::write_tensors;

use crate::support::{
    program::{MODEL, copy, fails, overrides, succeeds, tensors, train, truncate, with_overrides, workshop},
    snapshot::{assert_output, without_folders},
};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("bad_input");
    succeeds(&with_overrides("prepare", &overrides(&workshop, "any", &[])));
    workshop
});

/// Errors with their names, in the order in which they occurred, as a user reads them.
#[derive(Default)]
struct Errors(String);

impl Errors {
    fn add(&mut self, name: &str, said: &str) {
        let said = without_folders(said, &WORKSHOP);
        self.0 += &format!("── {name}\n{}\n\n", said.trim_end());
    }

    #[track_caller]
    fn check(self, name: &str) {
        assert_output(&format!("errors_{name}"), &self.0);
    }
}

/// Runs `kiln train` with these settings; it must fail, name all of `parts`, and leave no run folder behind.
#[track_caller]
fn train_fails(errors: &mut Errors, name: &str, settings: &[&str], parts: &[&str]) {
    let said = fails(&with_overrides("train", &overrides(&WORKSHOP, name, settings)));
    errors.add(&format!("train: {name}"), &said);
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!WORKSHOP.join("runs").join(name).exists(), "{name}: a run folder is left");
}

/// A copy of the model, changed.
fn model(name: &str, change: impl Fn(&Path)) -> PathBuf {
    let folder = WORKSHOP.join(name);
    copy(MODEL, &folder);
    change(&folder);
    folder
}

/// `--prompt p` for a model: the smallest command that needs all of it.
fn generate<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let size = ["--width", "32", "--height", "32", "--steps", "1", "--latents", "never.safetensors"];
    [&["generate", "--model", model, "--prompt", "p"], &size[..], more].concat()
}

#[test]
fn broken_models_are_named_with_the_file() {
    let remove = |path: &str| {
        let path = path.to_string();
        Box::new(move |model: &Path| {
            let path = model.join(&path);
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }) as Box<dyn Fn(&Path)>
    };
    let cut = |path: &str| {
        let path = path.to_string();
        Box::new(move |model: &Path| truncate(model.join(&path))) as Box<dyn Fn(&Path)>
    };
    let weights = "diffusion_pytorch_model.safetensors";
    let mut errors = Errors::default();
    for (name, change, file, hint) in [
        ("no-index", remove("model_index.json"), "model_index.json", true),
        ("no-tokenizer", remove("tokenizer"), "tokenizer", true),
        ("no-tokenizer-2", remove("tokenizer_2"), "tokenizer_2", true),
        ("no-t5", remove("text_encoder_2"), "text_encoder_2", true),
        ("no-vae", remove("vae"), "vae", true),
        ("no-scheduler", remove("scheduler"), "scheduler", true),
        ("no-weights", remove(&format!("transformer/{weights}")), "transformer", true),
        ("cut-transformer", cut(&format!("transformer/{weights}")), weights, true),
        ("cut-vae", cut(&format!("vae/{weights}")), weights, true),
        ("cut-clip", cut("text_encoder/model.safetensors"), "text_encoder/model.safetensors", true),
        ("cut-t5", cut("text_encoder_2/model.safetensors"), "text_encoder_2/model.safetensors", true),
        ("cut-tokenizer", cut("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json", false),
        ("cut-config", cut("transformer/config.json"), "transformer/config.json", false),
    ] {
        let folder = model(name, change);
        let folder = folder.to_str().unwrap();
        let said = fails(&generate(folder, &[]));
        assert!(said.contains(folder) && said.contains(file), "{name}: {said}");
        assert!(!hint || said.contains("\nhint: "), "{name}: {said}");
        errors.add(&format!("generate: {name}"), &said);
        let named = [folder, file, if hint { "\nhint: " } else { "" }];
        train_fails(&mut errors, name, &[&format!("model.path='{folder}'")], &named);
    }
    errors.check("broken_models");
}

#[test]
fn weights_that_do_not_fit_their_config_are_listed_together() {
    let folder = model("misfit", |model| {
        let path = model.join("transformer/diffusion_pytorch_model.safetensors");
        let mut all: std::collections::BTreeMap<_, _> = tensors(&path).into_iter().collect();
        all.remove("x_embedder.bias");
        all.remove("proj_out.weight");
        all.insert("stranger.weight".into(), TensorData::zeros::<f32, _>([2]));
        all.insert("context_embedder.bias".into(), TensorData::zeros::<f32, _>([5]));
        write_tensors(&path, &all, &Default::default()).unwrap();
    });
    let said = fails(&generate(folder.to_str().unwrap(), &[]));
    for part in [
        "transformer: 4 problems",
        "tensor `x_embedder.bias` is missing",
        "tensor `proj_out.weight` is missing",
        "tensor `context_embedder.bias` has shape [5], expected [96]",
        "tensor `stranger.weight` is not part of the model",
        "\nhint: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut errors = Errors::default();
    errors.add("generate", &said);
    errors.check("misfit_weights");
}

#[test]
fn broken_images_and_captions_are_listed_together_before_any_work() {
    let data = WORKSHOP.join("bad-data");
    copy("tests/fixtures/pictures", &data);
    truncate(data.join("apple.png"));
    std::fs::remove_file(data.join("boat.txt")).unwrap();
    std::fs::write(data.join("cat.png"), "this is text").unwrap();
    std::fs::write(data.join("cloud.txt"), " \n").unwrap();
    let path = format!("data.path='{}'", data.display());
    let parts = ["bad-data: 4 problems", "apple.png: ", "boat.png: ", "cat.png: ", "cloud.png: "];
    let mut errors = Errors::default();
    train_fails(&mut errors, "bad-data", &[&path], &parts);
    let said = fails(&with_overrides("prepare", &overrides(&WORKSHOP, "any", &[&path])));
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    let empty = WORKSHOP.join("empty-data");
    std::fs::create_dir_all(&empty).unwrap();
    train_fails(
        &mut errors,
        "empty-data",
        &[&format!("data.path='{}'", empty.display())],
        &["empty-data", "no images"],
    );
    train_fails(&mut errors, "no-data", &["data.path='nowhere'"], &["nowhere: there is no such folder", "\nhint: "]);
    errors.check("broken_data");
}

#[test]
fn settings_that_do_not_suit_the_model_are_named_and_leave_no_run_folder() {
    let mut errors = Errors::default();
    let similar = ["`lora.targets`", "`attn.to_queue` matches no layer", "\nhint: ", "attn.to_q`"];
    train_fails(&mut errors, "targets", &["lora.targets=['attn.to_queue']"], &similar);
    train_fails(
        &mut errors,
        "set",
        &["lora.targets=atention"],
        &["--set lora.targets=atention", "atention", "\"attention\""],
    );
    let prompts = ["validation.prompts=['p']", "validation.width=100"];
    train_fails(&mut errors, "width", &prompts, &["`validation.width`", "multiple of 16"]);
    train_fails(&mut errors, "key", &["training.steps=3"], &["--set training.steps=3", "unknown key `steps`"]);
    train_fails(
        &mut errors,
        "table",
        &["trainig.max_steps=3"],
        &["--set trainig.max_steps=3", "did you mean `training`?"],
    );
    train_fails(&mut errors, "model", &["model.path='no/such/model'"], &["no/such/model", "no such folder"]);
    train_fails(&mut errors, "hub", &["model.path='nobody/nothing'"], &["`model.path`", "nobody/nothing", "\nhint: "]);
    errors.check("unsuitable_settings");
}

#[test]
fn lora_files_that_do_not_fit_are_named() {
    let run = train(&WORKSHOP, "small", &[]);
    let trained = run.join("step-000003/adapter.safetensors");
    let narrow = WORKSHOP.join("narrow.safetensors");
    let thin = tensors(&trained).into_iter().map(|(name, data)| {
        let wide = name.ends_with("lora_A.weight").then(|| data.shape.to_vec());
        let data = wide.map_or(data, |shape| TensorData::zeros::<f32, _>([shape[0], shape[1] + 1]));
        (name, data)
    });
    write_tensors(&narrow, &thin.collect(), &Default::default()).unwrap();
    let stranger = WORKSHOP.join("stranger.safetensors");
    let pair = ["A", "B"].map(|part| {
        (format!("transformer.transformer_blocks.77.attn.to_q.lora_{part}.weight"), TensorData::zeros::<f32, _>([2, 2]))
    });
    write_tensors(&stranger, &pair.into(), &Default::default()).unwrap();
    let cut = WORKSHOP.join("cut.safetensors");
    std::fs::copy(&trained, &cut).unwrap();
    truncate(&cut);
    let text = WORKSHOP.join("text.safetensors");
    std::fs::write(&text, "not a tensor file at all, but long enough to be one").unwrap();
    let vae = Path::new(MODEL).join("vae/diffusion_pytorch_model.safetensors");
    let mut errors = Errors::default();
    for (file, problem, hint) in [
        (&narrow, "attn.to_q`: the adapter is for 97 inputs and 96 outputs, the layer has 96 and 96", true),
        (&stranger, "`transformer_blocks.77.attn.to_q`: the model has no such layer", true),
        (&cut, "not a complete safetensors file", true),
        (&text, "is a text file; kiln reads safetensors", true),
        (&vae, "LoRA", false),
        (&WORKSHOP.join("none.safetensors"), "No such file", false),
    ] {
        let file = file.to_str().unwrap();
        // The good one beside it is not to be blamed.
        let said = fails(&generate(MODEL, &["--lora", trained.to_str().unwrap(), "--lora", file]));
        assert!(said.starts_with(&format!("error: {file}: ")) && said.contains(problem), "{file}: {said}");
        assert!(!said.contains(trained.to_str().unwrap()), "{file}: {said}");
        assert!(!hint || said.contains("\nhint: "), "{file}: {said}");
        errors.add("generate", &said);
    }
    errors.check("lora_files");
    assert!(!Path::new("never.safetensors").exists());
}

#[test]
fn what_is_not_a_run_cannot_be_validated_exported_or_resumed() {
    let folder = WORKSHOP.join("no-run");
    std::fs::create_dir_all(folder.join("step-000001")).unwrap(); // without a state: never complete
    let mut errors = Errors::default();
    for path in [folder.clone(), folder.join("step-000001"), "Cargo.toml".into()] {
        let path = path.to_str().unwrap();
        let output = WORKSHOP.join("never.safetensors");
        for arguments in [vec!["validate", path], vec!["export", path, "--output", output.to_str().unwrap()]] {
            let said = fails(&arguments);
            assert!(said.contains(path) && said.contains("\nhint: "), "{said}");
            errors.add(arguments[0], &said);
        }
        assert!(!output.exists());
        let mut arguments = with_overrides("train", &overrides(&WORKSHOP, "never", &[]));
        arguments.extend(["--resume".to_string(), path.to_string()]);
        let said = fails(&arguments);
        assert!(said.contains(path) && said.contains("\nhint: "), "{said}");
        errors.add("train --resume", &said);
    }
    errors.check("no_run");
}

#[test]
fn without_held_out_images_there_is_nothing_to_validate() {
    let run = train(&WORKSHOP, "all-trained", &["data.validation_split=0", "training.max_steps=1"]);
    let said = fails(&["validate", run.to_str().unwrap()]);
    assert!(said.contains("`data.validation_split`") && said.contains("\nhint: "), "{said}");
    let mut errors = Errors::default();
    errors.add("validate", &said);
    errors.check("nothing_held_out");
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let run = train(&WORKSHOP, "to-export", &["training.max_steps=1"]);
    let file = WORKSHOP.join("a-file");
    std::fs::write(&file, "").unwrap();
    let output = file.join("lora.safetensors");
    let said = fails(&["export", run.to_str().unwrap(), "--output", output.to_str().unwrap()]);
    assert!(
        said.contains("a-file: there is no such folder, so ") && said.contains("a-file/lora.safetensors"),
        "{said}"
    );
    let mut errors = Errors::default();
    errors.add("export", &said);
    let run = format!("run.output='{}'", file.display());
    let said = fails(&with_overrides("train", &overrides(&WORKSHOP, "never", &[&run])));
    assert!(said.contains("a-file"), "{said}");
    errors.add("train", &said);
    errors.check("unwritable_output");
}
