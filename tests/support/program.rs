//! The program as a user runs it: the tiny configurations with other settings, in its own folder.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use burn::tensor::TensorData;
use kiln::weights::TensorFile;

/// The configuration that every test starts from.
pub const TINY_FLUX: &str = "tests/fixtures/tiny_flux.toml";

/// Its model.
pub const MODEL: &str = "tests/fixtures/tiny-flux";

/// The same for editing.
pub const TINY_EDIT: &str = "tests/fixtures/tiny_edit.toml";

/// Makes a tiny configuration short and fast: few steps, one noise level, no images. Later settings win.
pub const SHORT: [&str; 5] = [
    "training.max_steps=3",
    "training.log_every=1",
    "checkpoint.every=100",
    "validation.prompts=[]",
    "validation.sigmas=[0.5]",
];

/// A folder for the runs and the cache of one file of tests, empty at the start.
pub fn workshop(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The overrides for a run called `name` in `workshop`: [`SHORT`], then `more`.
pub fn overrides(workshop: &Path, name: &str, more: &[&str]) -> Vec<String> {
    let mut all = vec![
        format!("run.name={name}"),
        format!("run.output='{}'", workshop.join("runs").display()),
        format!("data.cache='{}'", workshop.join("cache").display()),
    ];
    all.extend(SHORT.iter().chain(more).map(|setting| setting.to_string()));
    all
}

/// The arguments of `command` with the tiny configuration and these overrides.
pub fn with_overrides(command: &str, overrides: &[String]) -> Vec<String> {
    let settings = overrides.iter().flat_map(|setting| ["--set".to_string(), setting.clone()]);
    [command, "--config", TINY_FLUX].map(String::from).into_iter().chain(settings).collect()
}

/// The program with these arguments, where cargo runs tests: in the folder of the package.
pub fn command(arguments: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").env("HF_HUB_OFFLINE", "1");
    command
}

/// The output of the program.
pub fn kiln(arguments: &[impl AsRef<str>]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs a command that must succeed; returns its standard output and standard error.
#[track_caller]
pub fn succeeds(arguments: &[impl AsRef<str>]) -> (String, String) {
    let output = kiln(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{:?}: {err}", arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    (out, err)
}

/// Runs a command that must fail as bad input does: exit code 1, nothing on standard output, one `error:` line, no panic.
/// Returns its standard error.
#[track_caller]
pub fn fails(arguments: &[impl AsRef<str>]) -> String {
    let mut quiet = vec!["-q"];
    quiet.extend(arguments.iter().map(AsRef::as_ref));
    let output = kiln(&quiet);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{quiet:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{quiet:?}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{quiet:?}: {said}");
    assert!(!said.contains("panicked") && !said.contains("internal error"), "{quiet:?}: {said}");
    said
}

/// Trains; returns the run folder, which is the last line on standard output.
#[track_caller]
pub fn train(workshop: &Path, name: &str, more: &[&str]) -> PathBuf {
    let (out, _) = succeeds(&with_overrides("train", &overrides(workshop, name, more)));
    PathBuf::from(out.lines().last().expect("the run folder is printed"))
}

/// All tensors of a file, by name.
pub fn tensors(path: impl AsRef<Path>) -> Vec<(String, TensorData)> {
    let file = TensorFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

/// Copies a folder with all below it.
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.as_ref().join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(entry.path(), target),
            false => _ = std::fs::copy(entry.path(), target).unwrap(),
        }
    }
}

/// Takes the end off a file.
pub fn truncate(path: impl AsRef<Path>) {
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}
