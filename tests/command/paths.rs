//! Paths and variables mean what users expect, and results that cannot be written are detected before the work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::LazyLock,
};

use image::{Rgb, RgbImage};

use crate::support::program::{MODEL, command, copy, fails, overrides, succeeds, tensors, with_overrides, workshop};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("inputs-paths"));

/// A folder with an image and its caption.
fn data(name: &str) -> PathBuf {
    let folder = WORKSHOP.join(name);
    fs::create_dir_all(&folder).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([200, 100, 0])).save(folder.join("a.png")).unwrap();
    fs::write(folder.join("a.txt"), "a boat").unwrap();
    folder
}

/// `kiln train` for one step on such a folder.
fn training(data: &Path, output: &str) -> Vec<String> {
    let settings = [
        "training.max_steps=1".to_string(),
        "validation.every=0".into(),
        "data.validation_split=0".into(),
        "data.resolution=64".into(),
        format!("data.path='{}'", data.display()),
        format!("data.cache='{}'", WORKSHOP.join("cache").display()),
        format!("run.output='{output}'"),
    ];
    with_overrides("train", &overrides(&WORKSHOP, "t", &settings.each_ref().map(String::as_str)))
}

fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--prompt", "a boat", "--width", "32", "--height", "32", "--steps", "2"], more].concat()
}

/// The program with these arguments and variables, in a folder.
fn run_in(folder: &Path, variables: &[(&str, &Path)], arguments: &[impl AsRef<str>]) -> Output {
    let mut command = command(arguments);
    command.current_dir(folder).envs(variables.iter().copied());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Where cargo runs tests.
fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_tilde_is_the_home_folder_in_every_option_and_setting() {
    let home = WORKSHOP.join("home");
    fs::create_dir_all(&home).unwrap();
    copy(MODEL, home.join("model"));
    let home_is = [("HOME", home.as_path())];
    let run = good(run_in(here(), &home_is, &training(&data("tilde"), "~/runs")));
    assert_eq!(run.trim(), home.join("runs/t").to_str().unwrap());
    let files = good(run_in(here(), &home_is, &generate(&["--model", "~/model", "--output=~/images"])));
    assert!(Path::new(files.trim()).starts_with(home.join("images")), "{files}");
    good(run_in(
        here(),
        &home_is,
        &generate(&["--model", MODEL, "--latents=~/l.safetensors", "--lora=~/runs/t/t.safetensors@0.5"]),
    ));
    assert!(home.join("l.safetensors").is_file());
    good(run_in(here(), &home_is, &["inspect", "~/runs/t/t.safetensors"]));
    assert!(!here().join("~").exists());
}

#[test]
fn other_peoples_homes_and_backslashes_are_refused() {
    for (path, named) in [("~nobody/runs", "`~nobody`"), (r"new\runs", "`new/runs`")] {
        let refused = fails(&training(&data("refused"), path));
        assert!(refused.contains("`run.output`") && refused.contains(named), "{refused}");
        let output = run_in(here(), &[], &generate(&["--model", MODEL, "--output", path]));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("--output") && said(&output).contains(named), "{}", said(&output));
        let refused = fails(&generate(&["--model", path, "--output", "never"]));
        assert!(refused.contains("`--model`") && refused.contains(named), "{refused}");
        assert!(!here().join(path).exists());
    }
}

#[test]
fn the_hubs_cache_is_found_wherever_its_variables_say() {
    let cache = WORKSHOP.join("hf/hub");
    let repository = cache.join("models--me--tiny");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "abc").unwrap();
    copy(MODEL, repository.join("snapshots/abc"));
    let latents = WORKSHOP.join("hub.safetensors");
    let arguments = generate(&["--model", "me/tiny", "--latents", latents.to_str().unwrap()]);
    let (hf, none) = (WORKSHOP.join("hf"), WORKSHOP.join("none"));
    fs::create_dir_all(WORKSHOP.join("xdg")).unwrap();
    copy(&hf, WORKSHOP.join("xdg/huggingface"));
    for variables in [
        [("HF_HUB_CACHE", cache.as_path()), ("HF_HOME", &none)],
        [("HUGGINGFACE_HUB_CACHE", &cache), ("HF_HOME", &none)],
        [("HF_HOME", &hf), ("XDG_CACHE_HOME", &none)],
        [("XDG_CACHE_HOME", &WORKSHOP.join("xdg")), ("HOME", &none)],
    ] {
        good(run_in(here(), &variables, &arguments));
        assert!(latents.is_file(), "{variables:?}");
        fs::remove_file(&latents).unwrap();
    }
}

#[test]
fn runs_inside_the_data_folder_are_no_data() {
    let data = data("inside");
    let runs = data.join("runs");
    let mut arguments = training(&data, runs.to_str().unwrap());
    arguments.extend(
        ["validation.prompts=['x']", "validation.steps=1", "validation.width=64", "validation.height=64"]
            .map(String::from)
            .iter()
            .flat_map(|setting| ["--set".to_string(), setting.clone()]),
    );
    succeeds(&arguments);
    assert!(runs.join("t/samples").is_dir());
    let (_, said) = succeeds(&arguments);
    assert!(said.contains("kiln's own run folders: 1 (`runs/t`)"), "{said}");
    arguments.extend(["--resume".to_string(), runs.join("t").to_str().unwrap().to_string()]);
    succeeds(&arguments);
}

#[test]
fn results_that_cannot_be_written_are_known_before_the_work() {
    let file = WORKSHOP.join("a-file");
    fs::write(&file, "").unwrap();
    let below = file.join("results");
    let below = below.to_str().unwrap();
    let long = WORKSHOP.join("x".repeat(300));
    let picture = data("picture").join("a.png");
    let (picture, folder) = (picture.to_str().unwrap(), picture.parent().unwrap().to_str().unwrap());
    let edits = "tests/fixtures/ip2p";
    let commands = [
        generate(&["--model", MODEL, "--output", below]),
        generate(&["--model", MODEL, "--output", long.to_str().unwrap()]),
        generate(&["--model", MODEL, "--latents", below]),
        generate(&["--model", MODEL, "--latents", folder]),
        vec!["edit", "--model", edits, "--image", picture, "--instruction", "x", "--steps", "1", "--output", below],
        vec!["batch", folder, "--model", MODEL, "--prompt", "x", "--steps", "1", "--output", below],
    ];
    for arguments in commands {
        let output = run_in(here(), &[], &arguments);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains("error: ") && !text.contains("text: ") && !text.contains("denois"),
            "{arguments:?}: {text}"
        );
    }
    let data = data("unwritable");
    for settings in [[format!("run.output='{below}'"), String::new()], [format!("data.cache='{below}'"), "x".into()]] {
        let mut arguments = training(&data, WORKSHOP.join("never").to_str().unwrap());
        arguments.extend(["--set".to_string(), settings[0].clone()]);
        if settings[1].is_empty() {
            // Something to encode, so that the order is visible.
            arguments.extend(["--set".to_string(), format!("data.cache='{}'", WORKSHOP.join("new-cache").display())]);
        }
        let output = run_in(here(), &[], &arguments);
        let text = said(&output);
        assert!(text.contains("a-file is not a folder") && text.contains("hint: set `"), "{text}");
        assert!(!text.contains("encoding"), "{text}");
    }
    assert!(!WORKSHOP.join("new-cache").exists());
    let said =
        fails(&[training(&data, "never"), vec!["--set".into(), format!("run.name='{}'", "n".repeat(201))]].concat());
    assert!(said.contains("`run.name`") && said.contains("200 bytes"), "{said}");
}

#[test]
fn a_relative_model_that_is_not_there_is_first_of_all_a_missing_folder() {
    let elsewhere = WORKSHOP.join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    for model in ["checkpoints/nano-flux", "some/deeper/model"] {
        let output = run_in(&elsewhere, &[], &generate(&["--model", model, "--output", "o"]));
        let text = said(&output);
        let first = text.lines().find(|line| line.starts_with("error")).unwrap_or_default();
        for part in [model, "no ", &format!("below {}", elsewhere.display()), "relative to the working directory"] {
            assert!(first.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_run_knows_where_it_was_started() {
    // A project of its own, so that every path in the configuration is relative.
    let project = WORKSHOP.join("project");
    copy(MODEL, project.join("models/tiny"));
    copy(data("started"), project.join("data"));
    RgbImage::from_pixel(64, 64, Rgb([0, 100, 0])).save(project.join("data/b.png")).unwrap();
    fs::write(project.join("data/b.txt"), "a tree").unwrap();
    let config = "[run]\nname = 't'\noutput = 'runs'\n[model]\npath = 'models/tiny'\ndtype = 'f32'\n[data]\npath = 'data'\n\
                  resolution = 64\nvalidation_split = 0.5\ncache = 'latents'\n[training]\nmax_steps = 1\n\
                  [validation]\nevery = 0\nsigmas = [0.5]\n";
    fs::write(project.join("c.toml"), config).unwrap();
    good(run_in(&project, &[], &["train", "--config", "c.toml"]));
    let (run, config) = (project.join("runs/t"), project.join("c.toml"));
    let (run, config) = (run.to_str().unwrap(), config.to_str().unwrap());
    let elsewhere = WORKSHOP.join("another-place");
    fs::create_dir_all(&elsewhere).unwrap();
    good(run_in(&elsewhere, &[], &["validate", run]));
    let lora = elsewhere.join("lora.safetensors");
    good(run_in(&elsewhere, &[], &["export", run, "--output", lora.to_str().unwrap()]));
    let more = ["train", "--config", config, "--resume", run, "--set", "training.max_steps=2"];
    good(run_in(&elsewhere, &[], &more));
    assert!(Path::new(run).join("step-000002").is_dir());
    let left: Vec<_> = fs::read_dir(&elsewhere).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["lora.safetensors"], "nothing but the export is left there");
    // The file's metadata has no path of this machine.
    let file = kiln::weights::TensorFile::open(&lora).unwrap();
    let project = project.to_str().unwrap();
    assert!(file.metadata().values().all(|value| !value.contains(project)), "{:?}", file.metadata());
    assert_eq!(tensors(Path::new(run).join("step-000001/adapter.safetensors")).len(), tensors(&lora).len() / 2 * 3);
}

#[test]
fn names_in_another_unicode_form_are_found() {
    let data = data("forms");
    let (apart, together) = ("e\u{301}", "\u{e9}");
    fs::rename(data.join("a.png"), data.join(format!("{apart}.png"))).unwrap();
    fs::rename(data.join("a.txt"), data.join(format!("{together}.txt"))).unwrap();
    let prepare = |data: &Path| {
        let settings = [format!("data.path='{}'", data.display()), "data.resolution=64".into()];
        with_overrides("prepare", &overrides(&WORKSHOP, "any", &settings.each_ref().map(String::as_str)))
    };
    let (_, said) = succeeds(&prepare(&data));
    assert!(said.contains("1 samples"), "{said}");
    fs::remove_file(data.join(format!("{together}.txt"))).unwrap();
    let row = |name: &str| serde_json::json!({ "file_name": name, "text": "a boat" }).to_string();
    fs::write(data.join("metadata.jsonl"), row(&format!("{together}.png"))).unwrap();
    let (_, said) = succeeds(&prepare(&data));
    assert!(said.contains("1 samples") && !said.contains("WARN"), "{said}");
    // Sub-folders as Windows writes them.
    fs::create_dir_all(data.join("more")).unwrap();
    fs::copy(data.join(format!("{apart}.png")), data.join("more/b.png")).unwrap();
    fs::write(data.join("metadata.jsonl"), [row(&format!("{apart}.png")), row(r"more\b.png")].join("\n")).unwrap();
    let (_, said) = succeeds(&prepare(&data));
    assert!(said.contains("2 samples"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_named_as_far_as_it_can_be() {
    use std::os::unix::ffi::OsStrExt;
    let data = data("odd");
    let odd = data.join(std::ffi::OsStr::from_bytes(b"x\xff.png"));
    if fs::copy(data.join("a.png"), &odd).is_err() {
        return; // a file system that takes no such names
    }
    let settings = [format!("data.path='{}'", data.display()), "data.resolution=64".into()];
    let settings = overrides(&WORKSHOP, "any", &settings.each_ref().map(String::as_str));
    let said = fails(&with_overrides("prepare", &settings));
    assert!(said.contains("x\u{fffd}.png: its name is not UTF-8: rename it"), "{said}");
    // Where no file has to name it, such a name works like any other.
    let output = WORKSHOP.join("odd-results");
    let arguments =
        ["batch", data.to_str().unwrap(), "--model", MODEL, "--prompt", "x", "--steps", "1", "--strength", "1"];
    succeeds(&[&arguments[..], &["--output", output.to_str().unwrap()]].concat());
    assert!(output.join(odd.file_name().unwrap()).is_file());
}
