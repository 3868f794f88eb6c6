//! A run that is interrupted and resumed equals one that was not.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant},
};

use burn::tensor::{Device, TensorData};
use kiln::{
    error::Result,
    training::{self, Checkpoint, Silent, TrainConfig},
    weights::write_tensors,
};

use crate::support::{
    program::{
        MODEL, TINY_EDIT, TINY_FLUX, command, copy, overrides, succeeds, tensors, truncate, with_overrides, workshop,
    },
    run::{check_curves, leftovers, names, numbers, state},
};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("resume");
    succeeds(&with_overrides("prepare", &overrides(&workshop, "any", &["data.flip=true"])));
    workshop
});

/// All that draws random numbers or counts across steps is on.
const EVERYTHING: [&str; 12] = [
    "training.max_steps=6",
    "training.gradient_accumulation=2",
    "data.batch_size=2",
    "data.flip=true",
    "data.repeats=2",
    "data.caption_dropout=0.4",
    "lora.dropout=0.3",
    "lora.targets=all",
    "checkpoint.every=2",
    "checkpoint.keep_last=0",
    "validation.every=2",
    "validation.sigmas=[0.3, 0.7]",
];

fn config(name: &str, more: &[&str]) -> TrainConfig {
    let settings: Vec<_> = EVERYTHING.iter().chain(more).copied().collect();
    TrainConfig::load(TINY_FLUX, &overrides(&WORKSHOP, name, &settings)).unwrap()
}

fn train(config: &TrainConfig, resume: Option<&Path>) -> Result<PathBuf> {
    training::train(config, resume, &Device::flex(), &mut Silent)
}

/// The run that nothing interrupts.
static WHOLE: LazyLock<PathBuf> = LazyLock::new(|| train(&config("whole", &[]), None).unwrap());

/// A copy of a run, for tests that change it.
fn copy_of(run: &Path, name: &str) -> PathBuf {
    let folder = WORKSHOP.join("copies").join(name);
    copy(run, &folder);
    folder
}

#[test]
fn a_run_continued_from_its_folder_is_the_uninterrupted_run_bit_for_bit() {
    let run = train(&config("first-half", &["training.max_steps=4"]), None).unwrap();
    assert_eq!(state(&run, 4), state(&WHOLE, 4));
    let again = train(&config("first-half", &[]), Some(&run)).unwrap();
    assert_eq!(again.canonicalize().unwrap(), run.canonicalize().unwrap());
    assert_eq!(state(&run, 6), state(&WHOLE, 6));
    assert_eq!(numbers(&run), numbers(&WHOLE));
    assert_eq!(tensors(run.join("first-half.safetensors")), tensors(WHOLE.join("whole.safetensors")));
    assert_eq!(TrainConfig::load(run.join("config.toml"), &[]).unwrap().training.max_steps, 6);
}

#[test]
fn moments_in_eight_bits_resume_bit_for_bit_and_take_a_quarter() {
    // Of rank 64 most tensors are large enough.
    let settings = ["optimizer.name=adamw8bit", "lora.rank=64"];
    let with = |more: &[&'static str]| settings.iter().chain(more).copied().collect::<Vec<_>>();
    let whole = train(&config("whole-8bit", &with(&[])), None).unwrap();
    let run = train(&config("half-8bit", &with(&["training.max_steps=4"])), None).unwrap();
    train(&config("half-8bit", &with(&[])), Some(&run)).unwrap();
    assert_eq!(state(&run, 6), state(&whole, 6));
    assert_eq!(numbers(&run), numbers(&whole));
    let full = train(&config("whole-32bit", &["lora.rank=64"]), None).unwrap();
    assert_ne!(state(&full, 6), state(&whole, 6));
    let size = |run: &Path| std::fs::metadata(run.join("step-000006/optimizer.safetensors")).unwrap().len() as f64;
    assert!(size(&whole) < 0.3 * size(&full), "{} of {} bytes", size(&whole), size(&full));
    // Another optimizer is another run.
    let error = train(&config("half-8bit", &["lora.rank=64"]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("optimizer.name"), "{error}");
}

#[test]
fn a_run_continued_from_an_older_checkpoint_takes_the_same_steps_again() {
    let run = copy_of(&WHOLE, "older");
    std::fs::remove_dir_all(run.join("step-000006")).unwrap();
    let again = train(&config("whole", &[]), Some(&run.join("step-000002"))).unwrap();
    assert_eq!(again.canonicalize().unwrap(), run.canonicalize().unwrap());
    for step in [4, 6] {
        assert_eq!(state(&run, step), state(&WHOLE, step));
    }
    assert_eq!(numbers(&run), numbers(&WHOLE));
}

/// `tests/fixtures/old_runs` holds what kiln 0.1.0 (`bf5538c`) wrote as `config.toml` of its quickstarts with the settings below,
/// of which `[objective]` and `[edit]` were two tables then; the paths are those of today.
#[test]
fn a_run_of_an_older_kiln_is_migrated_as_it_is_read() {
    let both = [
        "training.gradient_accumulation=2",
        "data.flip=true",
        "lora.rank=1",
        "lora.dropout=0.2",
        "training.max_steps=6",
        "checkpoint.every=3",
        "checkpoint.keep_last=0",
        "validation.every=0",
        "training.ema_decay=0.9",
        "data.batch_size=2",
    ];
    let flux = ["data.caption_dropout=0.3", "validation.prompts=[]", "objective.guidance=2.5"];
    let edit = [
        "model.path=tests/fixtures/ip2p",
        "training.mode=lora",
        "data.conditioning_dropout=0.2",
        "objective.snr_gamma=5",
        "objective.noise_offset=0.05",
        "validation.edits=0",
    ];
    for (name, file, more) in [("flux", TINY_FLUX, &flux[..]), ("edit", TINY_EDIT, &edit[..])] {
        let places = ["runs", "cache-old"].map(|place| WORKSHOP.join(format!("{place}-{name}")));
        let [output, cache] = ["run.output", "data.cache"].map(String::from);
        let places =
            [(output, &places[0]), (cache, &places[1])].map(|(key, path)| format!("{key}='{}'", path.display()));
        let settings = both.iter().chain(more).map(|setting| setting.to_string()).chain(places);
        let settings: Vec<_> = settings.collect();
        let load = |more: &[&str]| {
            let more = more.iter().map(|setting| setting.to_string());
            TrainConfig::load(file, &settings.iter().cloned().chain(more).collect::<Vec<_>>()).unwrap()
        };
        let whole = train(&load(&["run.name=whole"]), None).unwrap();
        let run = train(&load(&["run.name=old", "training.max_steps=3"]), None).unwrap();
        let old = Path::new("tests/fixtures/old_runs").join(name).with_extension("toml");
        std::fs::copy(&old, run.join("config.toml")).unwrap();
        let refused = TrainConfig::load(&old, &[]).unwrap_err().to_string();
        assert!(refused.contains("`edit`: is now `[objective]`"), "{refused}");
        training::validate(&run, None, None, &Device::flex()).unwrap();

        let config = load(&["run.name=old"]);
        train(&config, Some(&run)).unwrap();
        assert_eq!(state(&run, 6), state(&whole, 6));
        assert_eq!(TrainConfig::load(run.join("config.toml"), &[]).unwrap(), config);
        std::fs::copy(&old, run.join("config.toml")).unwrap();
        let other = train(&load(&["run.name=old", "lora.rank=2"]), Some(&run)).unwrap_err().to_string();
        assert!(other.contains("`lora.rank` was 1 and is now 2") && !other.contains("objective"), "{other}");
    }
}

#[test]
fn resuming_a_finished_run_does_nothing() {
    let run = copy_of(&WHOLE, "finished");
    train(&config("whole", &[]), Some(&run)).unwrap();
    assert_eq!(state(&run, 6), state(&WHOLE, 6));
    assert_eq!(numbers(&run), numbers(&WHOLE));
}

#[test]
fn keeping_all_activations_gives_the_same_bits_as_keeping_one_block() {
    let run = train(&config("full", &["training.activations=full", "training.max_steps=4"]), None).unwrap();
    let before = |run: &Path| numbers(run).into_iter().filter(|(step, ..)| *step <= 4).collect::<Vec<_>>();
    assert_eq!(before(&run), before(&WHOLE));
    assert_eq!(state(&run, 4), state(&WHOLE, 4));
}

#[test]
fn validation_does_not_change_what_is_trained() {
    let more = ["validation.every=1", "validation.prompts=['a circle']", "validation.steps=1", "training.max_steps=2"];
    let often = train(&config("often", &more), None).unwrap();
    let never = train(&config("never", &["validation.every=0", "training.max_steps=2"]), None).unwrap();
    assert_eq!(state(&often, 2), state(&never, 2));
    assert_eq!(state(&often, 2), state(&WHOLE, 2));
}

/// Everything in a run folder that a refused resumption must leave as it is.
fn untouched(run: &Path) -> Vec<(String, Vec<u8>)> {
    ["config.toml", "metrics.jsonl"].map(|name| (name.to_string(), std::fs::read(run.join(name)).unwrap())).into()
}

#[test]
fn other_settings_are_refused_in_one_error() {
    let run = copy_of(&WHOLE, "settings");
    let before = untouched(&run);
    let other = config("whole", &["lora.rank=4", "optimizer.learning_rate=0.5", "run.seed=3", "schedule.name=linear"]);
    let error = train(&other, Some(&run)).unwrap_err().to_string();
    for part in [
        "config.toml: ",
        "`lora.rank` was 8 and is now 4",
        "`optimizer.learning_rate` was 0.001 and is now 0.5",
        "`run.seed` was 0 and is now 3",
        "`schedule.name` was \"constant\" and is now \"linear\"",
        "hint: ",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(untouched(&run), before);
}

#[test]
fn another_length_is_refused_where_the_learning_rate_depends_on_it() {
    let short = ["training.max_steps=2", "schedule.name=cosine"];
    let run = train(&config("cosine", &short), None).unwrap();
    let error = train(&config("cosine", &["schedule.name=cosine"]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("`training.max_steps` was 2 and is now 6"), "{error}");
}

#[test]
fn other_data_are_refused_and_moved_data_are_not() {
    let run = copy_of(&WHOLE, "data");
    let before = untouched(&run);
    let folder = WORKSHOP.join("moved-data");
    copy("tests/fixtures/pictures", &folder);
    let moved = config("whole", &[&format!("data.path='{}'", folder.display())]);
    train(&moved, Some(&run)).unwrap();
    assert_eq!(state(&run, 6), state(&WHOLE, 6));

    std::fs::write(folder.join("apple.txt"), "no apple at all").unwrap();
    let error = train(&moved, Some(&run)).unwrap_err().to_string();
    assert!(error.contains("moved-data: the images or captions are not those"), "{error}");
    assert!(error.contains("hint: "), "{error}");
    assert_eq!(untouched(&run)[1], before[1]);
}

#[test]
fn another_base_model_is_refused_and_a_moved_one_is_not() {
    let run = copy_of(&WHOLE, "model");
    let model = WORKSHOP.join("moved-model");
    copy(MODEL, &model);
    let moved = config("whole", &[&format!("model.path='{}'", model.display())]);
    train(&moved, Some(&run)).unwrap();
    let before = untouched(&run);

    let path = model.join("transformer/diffusion_pytorch_model.safetensors");
    let mut all: std::collections::BTreeMap<_, _> = tensors(&path).into_iter().collect();
    let bias = all.get_mut("x_embedder.bias").unwrap();
    let changed: Vec<f32> =
        bias.clone().convert_dtype(burn::tensor::DType::F32).iter::<f32>().map(|v| v + 1.0).collect();
    *bias = TensorData::new(changed, bias.shape.clone());
    write_tensors(&path, &all, &Default::default()).unwrap();
    let error = train(&moved, Some(&run)).unwrap_err().to_string();
    assert!(error.contains("moved-model") && error.contains("base model") && error.contains("hint: "), "{error}");
    assert_eq!(untouched(&run), before);
}

#[test]
fn what_an_interrupted_save_leaves_is_passed_over() {
    let run = copy_of(&WHOLE, "interrupted");
    let last = run.join("step-000006");
    std::fs::rename(&last, run.join("step-000006.partial")).unwrap();
    truncate(run.join("step-000006.partial/optimizer.safetensors"));
    std::fs::create_dir(run.join("step-000005")).unwrap(); // no state.json: never complete
    std::fs::write(run.join("metrics.jsonl.partial"), "{").unwrap();
    train(&config("whole", &[]), Some(&run)).unwrap();
    assert_eq!(state(&run, 6), state(&WHOLE, 6));
    assert_eq!(numbers(&run), numbers(&WHOLE));
    assert!(!run.join("step-000006.partial").exists());
}

#[test]
fn a_damaged_checkpoint_is_named_and_an_older_one_can_be_resumed() {
    for file in ["adapter.safetensors", "optimizer.safetensors", "state.json"] {
        let run = copy_of(&WHOLE, file);
        truncate(run.join("step-000006").join(file));
        let error = train(&config("whole", &[]), Some(&run)).unwrap_err().to_string();
        assert!(error.contains(&format!("step-000006/{file}: ")), "{error}");
        train(&config("whole", &[]), Some(&run.join("step-000004"))).unwrap();
        assert_eq!(state(&run, 6), state(&WHOLE, 6));
    }
}

#[test]
fn a_checkpoint_with_half_an_optimizer_is_refused() {
    let run = copy_of(&WHOLE, "mixed");
    let optimizer = run.join("step-000006/optimizer.safetensors");
    let lost = "proj_out.lora_B.weight.exp_avg_sq";
    let all = tensors(&optimizer).into_iter().filter(|(name, _)| name != lost);
    write_tensors(&optimizer, &all.collect(), &Default::default()).unwrap();
    let resume = || train(&config("whole", &["training.max_steps=7"]), Some(&run)).unwrap_err().to_string();
    let error = resume();
    assert!(error.contains("step-000006/optimizer.safetensors: does not match its checksum"), "{error}");
    forget_checksums(&run.join("step-000006"));
    let error = resume();
    assert!(error.contains(&format!("optimizer.safetensors: tensor `{lost}` is missing")), "{error}");
}

/// Converts a checkpoint to a version without checksums.
fn forget_checksums(checkpoint: &Path) {
    let path = checkpoint.join("state.json");
    let mut state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for key in ["files", "checksum"] {
        state.as_object_mut().unwrap().remove(key).unwrap();
    }
    std::fs::write(path, serde_json::to_string_pretty(&state).unwrap()).unwrap();
}

#[test]
fn a_checkpoint_from_before_checksums_is_accepted() {
    let run = copy_of(&WHOLE, "old");
    std::fs::remove_dir_all(run.join("step-000006")).unwrap();
    forget_checksums(&run.join("step-000004"));
    train(&config("whole", &[]), Some(&run)).unwrap();
    assert_eq!((state(&run, 6), numbers(&run)), (state(&WHOLE, 6), numbers(&WHOLE)));
    forget_checksums(&run.join("step-000006"));
    training::validate(&run, None, None, &Device::flex()).unwrap();
    truncate(run.join("step-000006/optimizer.safetensors"));
    let error = train(&config("whole", &["training.max_steps=7"]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("step-000006/optimizer.safetensors: ") && error.contains("step-000004"), "{error}");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is_and_the_checkpoint_before_is_offered() {
    let run = copy_of(&WHOLE, "flipped");
    let last = run.join("step-000006");
    for file in names(&last) {
        let whole = std::fs::read(last.join(&file)).unwrap();
        // The length of a header, the header, and places all over the tensors.
        let places =
            [0, 7, 8, 20].into_iter().chain((1..8).map(|eighth| whole.len() * eighth / 8)).chain([whole.len() - 1]);
        for place in places {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << (place % 8);
            std::fs::write(last.join(&file), damaged).unwrap();
            let error = train(&config("whole", &["training.max_steps=7"]), Some(&run)).unwrap_err().to_string();
            assert!(error.contains(&format!("step-000006/{file}: ")), "byte {place}: {error}");
            let offer = format!("`resume {}`", run.canonicalize().unwrap().join("step-000004").display());
            assert!(error.contains("hint: ") && error.contains(&offer), "byte {place}: {error}");
        }
        if file == "adapter.safetensors" {
            let error = training::validate(&run, None, None, &Device::flex()).unwrap_err().to_string();
            assert!(error.contains("step-000006/adapter.safetensors: does not match its checksum"), "{error}");
        }
        std::fs::write(last.join(&file), whole).unwrap();
    }
    // The one before it is damaged, too, and its folder is not that of its step: the first is offered.
    let broken = run.join("step-000004");
    std::fs::rename(run.join("step-000004"), run.join("step-000005")).unwrap();
    truncate(last.join("optimizer.safetensors"));
    let error = train(&config("whole", &["training.max_steps=7"]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("step-000002"), "{error}");
    let error = train(&config("whole", &[]), Some(&run.join("step-000005"))).unwrap_err().to_string();
    assert!(error.contains("state.json: is of step 4, but is in the folder of step 5"), "{error}");
    std::fs::rename(run.join("step-000005"), broken).unwrap();
    std::fs::remove_dir_all(run.join("step-000002")).unwrap();
    std::fs::remove_file(run.join("step-000004/adapter.safetensors")).unwrap();
    let error = train(&config("whole", &[]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("there is no intact checkpoint before it"), "{error}");
}

#[test]
fn an_edited_step_in_the_state_is_refused() {
    let run = copy_of(&WHOLE, "changed");
    let path = run.join("step-000006/state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"step\": 6", "\"step\": 5")).unwrap();
    let error = train(&config("whole", &[]), Some(&run)).unwrap_err().to_string();
    assert!(error.contains("step-000006/state.json: does not match its checksum"), "{error}");
}

#[test]
fn a_checkpoint_that_is_being_read_is_not_pruned() {
    let run = copy_of(&WHOLE, "read");
    let (_, held) = Checkpoint::hold(&run.join("step-000002")).unwrap();
    Checkpoint::prune(&run, 1).unwrap();
    let checkpoints = || names(&run).into_iter().filter(|name| name.starts_with("step-")).collect::<Vec<_>>();
    assert_eq!(checkpoints(), ["step-000002", "step-000006"]);
    held[0].verify().unwrap();
    let later = Checkpoint::hold(&run).unwrap();
    let error = train(&config("whole", &[]), Some(&run.join("step-000002"))).unwrap_err().to_string();
    assert!(error.contains("step-000006: another process is reading this checkpoint"), "{error}");
    drop((held, later));
    Checkpoint::prune(&run, 1).unwrap();
    assert_eq!(checkpoints(), ["step-000006"]);
}

#[test]
fn curves_have_each_step_once_after_a_resume() {
    let run = copy_of(&WHOLE, "curves");
    check_curves(&run);
    for from in [4, 2, 2] {
        train(&config("whole", &[]), Some(&run.join(format!("step-{from:06}")))).unwrap();
        check_curves(&run);
    }
    assert_eq!(names(&run.join("tensorboard")).len(), 4);
    assert_eq!(numbers(&run), numbers(&WHOLE));
    assert!(leftovers(&run).is_empty());
}

/// `kill -INT`, what ctrl-c does.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_with_a_checkpoint_from_which_it_resumes() {
    use std::process::{Command, Stdio};
    let endless = ["training.max_steps=100000", "checkpoint.every=100000", "validation.every=0"];
    let settings: Vec<_> = EVERYTHING.iter().chain(&endless).copied().collect();
    let all = overrides(&WORKSHOP, "stopped", &settings);
    let mut child =
        command(&with_overrides("train", &all)).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = WORKSHOP.join("runs/stopped/metrics.jsonl");
    let started = Instant::now();
    let steps = || std::fs::read_to_string(&metrics).unwrap_or_default().matches("grad_norm").count();
    while steps() < 2 {
        assert!(started.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no second step");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let run = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert_eq!(run, WORKSHOP.join("runs/stopped"));
    let (step, ..) = *numbers(&run).last().unwrap();
    assert!(run.join(format!("step-{step:06}/state.json")).is_file(), "{step}");
    assert!(!run.join("stopped.safetensors").exists(), "it is not finished");

    let length = format!("training.max_steps={}", step + 1);
    let continued = train(&config("stopped", &[&length, "validation.every=0"]), Some(&run)).unwrap();
    let steps: Vec<_> =
        numbers(&continued).into_iter().filter(|(_, name, _)| name == "loss").map(|(s, ..)| s).collect();
    assert_eq!(steps, (1..=step + 1).collect::<Vec<_>>());
}
