//! The program as a user meets it: help, errors, exit codes.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use kiln::cli::Cli;
use tempfile::TempDir;

use crate::support::{
    program::kiln,
    snapshot::{assert_output, without_numbers},
};

/// Runs a command that must fail with `code`, print nothing on standard output and never panic; returns its standard error.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = kiln(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{arguments:?}");
    assert!(said.starts_with("error: "), "{arguments:?}: {said}");
    assert!(!said.contains("panicked") && !said.contains("internal error"), "{arguments:?}: {said}");
    said
}

/// A configuration with `text` after the three keys that have no default.
fn config(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("run.toml");
    let start = "[run]\nname = 'a'\n[model]\npath = 'no-model'\n[data]\npath = 'no-data'\n";
    std::fs::write(&file, format!("{start}{text}")).unwrap();
    (folder, file.to_string_lossy().into())
}

#[test]
fn help_names_every_command_and_every_option() {
    let help = |arguments: &[&str]| {
        let output = kiln(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let all = help(&["--help"]);
    for (command, options) in [
        ("prepare", &["--config", "--set", "--ui"][..]),
        ("train", &["--config", "--set", "--resume", "--dry-run", "--ui", "[possible values: tui, bar, plain]"]),
        ("validate", &["--memory", "--json", "RUN|CHECKPOINT"]),
        ("export", &["--output", "--format", "diffusers, kohya, comfyui", "--dtype", "f32, bf16, f16"]),
        (
            "generate",
            &[
                "--model",
                "--lora",
                "--prompt",
                "--prompt-ids",
                "--width",
                "--height",
                "--steps",
                "--guidance",
                "--seed",
                "--count",
                "--noise",
                "--latents",
                "--output",
            ],
        ),
        ("inspect", &["FILE"]),
        ("doctor", &["--device", "--kernel-cache"]),
        (
            "bench",
            &[
                "--model",
                "--only",
                "--size",
                "--batch",
                "--targets",
                "--steps",
                "--layers",
                "--small",
                "--peer",
                "--json",
            ],
        ),
    ] {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
        let text = help(&[command, "-h"]);
        for option in options.iter().chain(&["--device", "--verbose", "--quiet"]) {
            assert!(text.contains(option), "{command} {option}: {text}");
        }
    }
}

#[test]
fn help_is_what_the_snapshots_show() {
    let program = Cli::command();
    let commands = program.get_subcommands().map(|command| command.get_name()).filter(|name| *name != "help");
    let commands: Vec<_> = commands.collect();
    assert_eq!(commands.len(), 15);
    let help = |arguments: &[&str]| String::from_utf8(kiln(arguments).stdout).unwrap();
    assert_output("help", &help(&["--help"]));
    for command in commands {
        assert_output(&format!("help_{command}"), &help(&[command, "--help"]));
    }
}

#[test]
fn the_doctor_says_what_there_is_and_what_to_use() {
    let output = kiln(&["doctor"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let said = String::from_utf8(output.stdout).unwrap();
    for name in ["kiln", "processor", "memory", "GPU", "models", "disk", "use"] {
        assert_eq!(said.lines().filter(|line| line.starts_with(&format!("{name:<10} "))).count(), 1, "{name}: {said}");
    }
    let device = said.split_once("use        device ").unwrap().1.split(',').next().unwrap();
    assert!(["cpu", "cuda"].contains(&device), "{said}");
    if device == "cpu" {
        assert!(said.contains("none usable: ") && said.contains("hint: "), "{said}");
    }
    if cfg!(not(feature = "cuda")) {
        // What depends on the machine is masked: numbers, the processor's name, folders.
        let line = |line: &str| match line.split_once(' ') {
            Some((name @ ("processor" | "models" | "disk"), _)) => format!("{name:<10} …"),
            _ => without_numbers(line),
        };
        assert_output("doctor", &said.lines().map(line).collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for arguments in [
        &["bake"][..],
        &["train"],
        &["train", "--config", "a.toml", "--colour"],
        &["train", "--config", "a.toml", "--ui", "web"],
        &["train", "--config", "a.toml", "--device", "gpu"],
        &["export", "a", "--output", "b", "--format", "gguf"],
        &["generate", "--model", "m", "--output", "o"],
        &["generate", "--model", "m", "--prompt", "p"],
    ] {
        fails(2, arguments);
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let said = fails(1, &["train", "--config", "no-such.toml"]);
    let expected = "error: the configuration cannot be used\n  because: no-such.toml: No such file or directory";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn a_wrong_key_type_or_option_is_named_with_file_line_and_suggestion() {
    for (text, place, problem, hint) in [
        ("[lora]\nrnak = 4\n", "line 8: `lora.rnak`: ", "unknown key `rnak`", "did you mean `rank`?"),
        ("[lora]\n\nrank = 'big'\n", "line 9: `lora.rank`: ", "string \"big\", expected a whole number", ""),
        ("[optimizer]\nname = 'adam'\n", "line 8: `optimizer.name`: ", "unknown value `adam`", "did you mean `adamw`?"),
        (
            "[objective]\nshift = 'resolutoin'\n",
            "line 8: `objective.shift`: ",
            "unknown value",
            "did you mean `resolution`?",
        ),
        ("[training\n", "line 7: ", "", ""),
    ] {
        let (_folder, file) = config(text);
        for command in ["prepare", "train"] {
            let said = fails(1, &[command, "--config", &file]);
            let start = format!("error: the configuration cannot be used\n  because: {file}: {place}");
            assert!(said.starts_with(&start) && said.contains(problem), "{said}");
            assert!(hint.is_empty() || said.trim_end().ends_with(&format!("\nhint: {hint}")), "{said}");
        }
    }
}

#[test]
fn impossible_values_are_listed_together() {
    let (_folder, file) = config("[training]\nmax_steps = 0\n[optimizer]\nlearning_rate = -1.0\n[lora]\nrank = 0\n");
    let said = fails(1, &["train", "--config", &file]);
    for key in ["`training.max_steps`: ", "`optimizer.learning_rate`: ", "`lora.rank`: "] {
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn an_error_in_an_override_names_the_override() {
    let (_folder, file) = config("");
    let said = fails(1, &["train", "--config", &file, "--set", "lora.rank=8", "--set", "lora.rang=9"]);
    assert!(said.contains("`--set lora.rang=9`: `lora.rang`: unknown key `rang`"), "{said}");
    assert!(said.trim_end().ends_with("hint: did you mean `rank`?"), "{said}");
    let said = fails(1, &["train", "--config", &file, "--set", "lora.rank"]);
    assert!(said.contains("`--set lora.rank`: no `=` in it"), "{said}");
}

#[test]
fn the_old_name_of_the_kernel_cache_is_refused_with_the_new_one() {
    let (_folder, file) = config("");
    let said = fails(2, &["prepare", "--config", &file, "--cache", "kernels"]);
    assert!(said.contains("`--kernel-cache kernels`") && said.contains("`data.cache`"), "{said}");
}

#[test]
fn a_missing_device_is_an_error() {
    let (_folder, file) = config("");
    let said = fails(1, &["train", "--config", &file, "--device", "cuda:99"]);
    assert!(said.starts_with("error: `--device cuda"), "{said}");
    if cfg!(not(feature = "cuda")) {
        assert!(said.contains("hint: build it with `cargo build --release --features cuda`"), "{said}");
    }
}

#[test]
fn the_dashboard_without_a_terminal_is_an_error() {
    let (_folder, file) = config("");
    let said = fails(1, &["train", "--config", &file, "--ui", "tui"]);
    assert!(said.starts_with("error: `--ui tui`: the dashboard needs a terminal"), "{said}");
}

#[test]
fn missing_inputs_are_named() {
    let (_folder, file) = config("");
    for (arguments, name) in [
        (&["train", "--config", &file][..], "no-"),
        (&["prepare", "--config", &file], "no-"),
        (&["validate", "no-run"], "no-run"),
        (&["export", "no-run", "--output", "x.safetensors"], "no-run"),
        (&["inspect", "no-file.safetensors"], "no-file.safetensors"),
        (&["generate", "--model", "./no-model", "--prompt", "p", "--output", "o"], "no-model"),
    ] {
        let said = fails(1, arguments);
        assert!(said.contains(name), "{arguments:?}: {said}");
    }
    assert!(!PathBuf::from("x.safetensors").exists());
}

#[test]
fn every_shipped_configuration_is_in_the_program_too() {
    let printed = |arguments: &[&str]| String::from_utf8(kiln(arguments).stdout).unwrap();
    let list = printed(&["config"]);
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(list.lines().count(), files.len(), "{list}");
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(list.lines().any(|line| line.split(' ').next() == Some(name)), "{name} is not in\n{list}");
        assert_eq!(printed(&["config", name]).trim_end(), std::fs::read_to_string(&file).unwrap().trim_end());
    }
    let said = fails(1, &["config", "flux"]);
    assert!(said.contains("there is no configuration called `flux`") && said.contains("`kiln config`"), "{said}");
}

/// Splits a shell line into words; quotes keep spaces together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted, mut open) = (vec![String::new()], false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, open) = (!quoted, true),
            ' ' if !quoted => {
                if open || !words.last().unwrap().is_empty() {
                    words.push(String::new());
                }
                open = false;
            }
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_that_the_documents_show_is_understood_and_its_configuration_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut commands = 0;
    for document in ["README.md", ".github/CONTRIBUTING.md", "checkpoints/nano-flux/README.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap().replace("\\\n", " ");
        for block in text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            for line in block.lines().map(|line| line.split(" #").next().unwrap().trim()) {
                let starts = ["kiln ", "target/release/kiln ", "cargo run --release -- "];
                let Some(arguments) = starts.iter().find_map(|start| line.strip_prefix(start)) else { continue };
                let arguments = words(arguments);
                let parsed = Cli::command().try_get_matches_from([&["kiln".to_string()], &arguments[..]].concat());
                assert!(parsed.is_ok(), "{document}: {line}\n{}", parsed.unwrap_err());
                for file in arguments.iter().filter(|word| word.starts_with("configs/")) {
                    assert!(root.join(file).is_file(), "{document}: {line}: there is no {file}");
                }
                commands += 1;
            }
        }
    }
    assert!(commands > 20, "{commands}");
}
