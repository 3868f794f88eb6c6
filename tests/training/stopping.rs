//! Work is not lost: not when nobody reads kiln's output, not when it is asked to stop, not when it is killed.
#![cfg(unix)]

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use kiln::training::Checkpoint;

use crate::support::{
    program::{command, fails, kiln, overrides, succeeds, train, truncate, with_overrides, workshop},
    pty::Pty,
    run::{check_curves, files, leftovers, names, numbers, state},
    sampling::{MAKES, draw, model},
};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("stopping");
    succeeds(&with_overrides("prepare", &overrides(&workshop, "any", &[])));
    workshop
});

/// A run that continues until it is stopped.
const ENDLESS: [&str; 3] = ["training.max_steps=1000000", "checkpoint.every=1000000", "validation.every=0"];

fn endless(name: &str) -> Vec<String> {
    with_overrides("train", &overrides(&WORKSHOP, name, &ENDLESS))
}

fn run(name: &str) -> PathBuf {
    WORKSHOP.join("runs").join(name)
}

/// Waits until `done`, at most so long as a machine with other things to do may need.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the program does not end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn wait_for_steps(run: &Path, steps: usize) {
    let count = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().matches("grad_norm").count();
    wait_until("no step", || count() >= steps);
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

fn text(mut stderr: ChildStderr) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    text
}

/// The step of the only checkpoint of a run that was stopped, which is whole and has all its lines.
#[track_caller]
fn stopped_at(run: &Path) -> u64 {
    let checkpoints = Checkpoint::all(run).unwrap();
    assert_eq!(checkpoints.len(), 1, "{:?}", names(run));
    checkpoints[0].verify().unwrap();
    assert_eq!(numbers(run).last().unwrap().0, checkpoints[0].step);
    assert!(!run.join(".lock").exists() && leftovers(run).is_empty(), "{:?}", names(run));
    checkpoints[0].step
}

// Nobody reads.

#[test]
fn a_run_whose_output_nobody_reads_gives_the_same_result() {
    let whole = train(&WORKSHOP, "read", &["checkpoint.every=1"]);
    for (ui, full) in [("plain", false), ("bar", false), ("plain", true)] {
        let name = format!("unread-{ui}-{full}");
        let mut arguments = with_overrides("train", &overrides(&WORKSHOP, &name, &["checkpoint.every=1"]));
        arguments.extend(["--ui", ui, "-vv"].map(String::from));
        let mut command = command(&arguments);
        let mut child = match full {
            true => {
                let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
                command.stdout(full()).stderr(full()).spawn().unwrap()
            }
            false => command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
        };
        drop((child.stdout.take(), child.stderr.take()));
        // A full standard output cannot hold the result, which is an error; one that nobody reads is none.
        assert_eq!(ended(&mut child).code(), Some(i32::from(full)), "{name}");
        assert_eq!(state(&run(&name), 3), state(&whole, 3), "{name}");
        assert!(run(&name).join(format!("{name}.safetensors")).is_file());
    }
}

#[test]
fn errors_help_and_tables_that_nobody_reads_end_with_their_own_exit_code() {
    let run = train(&WORKSHOP, "table", &[]);
    let run = run.to_str().unwrap();
    for (code, arguments) in [
        (1, &["train", "--config", "no-such.toml"][..]),
        (1, &["generate", "--model", "./no-model", "--prompt", "p", "--output", "o", "-vv"]),
        (2, &["bake"]),
        (0, &["--help"]),
        (0, &["validate", run]),
        (0, &["inspect", &format!("{run}/table.safetensors")]),
    ] {
        let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(ended(&mut child).code(), Some(code), "{arguments:?}");
        let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let mut child = command(arguments).stdout(Stdio::null()).stderr(full()).spawn().unwrap();
        assert_eq!(ended(&mut child).code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_self_test_that_nobody_reads_ends_quietly_at_its_first_line() {
    let mut child =
        command(&["selftest", "--only", "f32"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(&mut child).code(), Some(141));
    assert_eq!(text(child.stderr.take().unwrap()).matches("error").count(), 0);
}

// Somebody asks to stop.

#[test]
fn each_signal_ends_a_run_with_a_checkpoint_and_an_exit_code_of_its_own() {
    for name in ["INT", "TERM", "HUP"] {
        let mut child = command(&endless(name)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_steps(&run(name), 2);
        signal(&child, name);
        signal(&child, "HUP"); // a closed terminal sends several; none of them ends the run at once
        assert_eq!(ended(&mut child).code(), Some(130), "{name}");
        let step = stopped_at(&run(name));
        let said = text(child.stderr.take().unwrap());
        let expected =
            format!("stopped on request after step {step}; `--resume {}` continues from there", run(name).display());
        assert!(said.contains(&expected) && !said.contains("error"), "{said}");
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(printed.trim_end(), run(name).to_str().unwrap());
        assert!(!run(name).join(format!("{name}.safetensors")).exists(), "it is not finished");
    }
}

#[test]
fn ctrl_c_that_takes_the_reader_of_the_log_with_it_leaves_a_checkpoint() {
    let mut child = command(&endless("tee")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&run("tee"), 2);
    drop((child.stdout.take(), child.stderr.take()));
    signal(&child, "INT");
    assert_eq!(ended(&mut child).code(), Some(130));
    stopped_at(&run("tee"));
}

#[test]
fn a_second_ctrl_c_ends_at_once_without_a_checkpoint() {
    use std::os::unix::process::ExitStatusExt;
    // A step that practically never ends: all images, over and over, before one update.
    let mut arguments = endless("twice");
    arguments.extend(["--set", "training.gradient_accumulation=100000"].map(String::from));
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = run("twice").join("metrics.jsonl");
    let validated = || std::fs::read_to_string(&metrics).is_ok_and(|text| text.contains("validation_loss"));
    wait_until("no validation before the first step", validated);
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(700));
    signal(&child, "INT");
    assert_eq!(ended(&mut child).signal(), Some(libc::SIGINT));
    assert!(Checkpoint::all(&run("twice")).unwrap().is_empty());
}

#[test]
fn nohup_keeps_its_meaning() {
    let mut arguments = with_overrides("train", &overrides(&WORKSHOP, "nohup", &["training.max_steps=12"]));
    arguments.insert(0, env!("CARGO_BIN_EXE_kiln").into());
    let script = "trap '' HUP; exec \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_steps(&run("nohup"), 1);
    signal(&child, "HUP");
    assert!(ended(&mut child).success());
    assert_eq!(numbers(&run("nohup")).last().unwrap().0, 12);
}

#[test]
fn preparation_stops_after_the_current_image_and_resumes_there() {
    // Images that take the encoder some time.
    const PICTURES: usize = 12;
    let data = WORKSHOP.join("large");
    std::fs::create_dir_all(&data).unwrap();
    for i in 0..PICTURES {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 7) as u8, (y * 3) as u8, (i * 20) as u8]);
        image::RgbImage::from_fn(512, 512, pixel).save(data.join(format!("{i:02}.png"))).unwrap();
        std::fs::write(data.join(format!("{i:02}.txt")), format!("image {i}")).unwrap();
    }
    for (signal_name, command_name) in [("INT", "train"), ("TERM", "prepare"), ("HUP", "prepare")] {
        let name = format!("prepare-{signal_name}");
        let cache = WORKSHOP.join(&name);
        let settings = [
            format!("data.path='{}'", data.display()),
            format!("data.cache='{}'", cache.display()),
            "data.resolution=512".into(),
        ];
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let arguments = with_overrides(command_name, &overrides(&WORKSHOP, &name, &settings));
        let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let encoded = || {
            let whole = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
            files(&cache.join("latents")).iter().filter(whole).count()
        };
        wait_until("no image is encoded", || encoded() > 0);
        signal(&child, signal_name);
        let seen = encoded();
        assert_eq!(ended(&mut child).code(), Some(130), "{signal_name}");
        let there = encoded();
        assert!(there <= seen + 3 && there < PICTURES, "{seen} when asked to stop, {there} at the end");
        let said = text(child.stderr.take().unwrap());
        assert!(said.contains("stopped on request; ") && said.contains(cache.to_str().unwrap()), "{said}");
        assert!(!run(&name).exists() && leftovers(&cache).is_empty());
        if command_name == "train" {
            let (_, said) = succeeds(&with_overrides("prepare", &overrides(&WORKSHOP, &name, &settings)));
            assert!(said.contains(&format!("{} images and", PICTURES - there)), "{there}: {said}");
        }
    }
}

#[test]
fn generation_batches_and_validation_keep_finished_results_when_stopped() {
    let images = WORKSHOP.join("images");
    let output = images.to_str().unwrap();
    let many = [
        "generate",
        "--model",
        "tests/fixtures/tiny-flux",
        "--prompt",
        "a circle",
        "--width",
        "64",
        "--height",
        "64",
        "--steps",
        "4",
        "--count",
        "5000",
        "--batch-size",
        "1",
        "--output",
        output,
    ];
    let mut child = command(&many).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("no image", || names(&images).iter().any(|name| name.ends_with(".png")));
    signal(&child, "INT");
    drop(child.stderr.take());
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(ended(&mut child).code(), Some(130));
    let written: Vec<_> = names(&images).iter().map(|name| images.join(name).display().to_string()).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), written);
    assert!(written.len() < 5000 && written.iter().all(|path| image::open(path).is_ok()));

    let (large, output) = (WORKSHOP.join("to-paint"), WORKSHOP.join("painted"));
    std::fs::create_dir_all(&large).unwrap();
    (0..500).for_each(|i| drop(draw(&large.join(format!("{i:03}.png")), 64, 48, i)));
    let model = model(MAKES);
    let many = [
        ["batch", large.to_str().unwrap(), "--model", &model, "--prompt", "snow", "--steps", "3"],
        ["--strength", "1", "--batch-size", "1", "--seed", "1", "--output", output.to_str().unwrap()],
    ];
    let mut child = command(&many.concat()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    wait_until("no image", || names(&output).iter().any(|name| name.ends_with(".png")));
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(130));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(output.join("report.json")).unwrap()).unwrap();
    let listed = report["pictures"].as_array().unwrap().len();
    assert!(listed > 0 && listed < 500 && names(&output).len() == listed + 1, "{listed}: {:?}", names(&output));
    let said = said.join().unwrap();
    assert!(said.contains(&format!("stopped on request after {listed} images")), "{said}");

    let run = train(&WORKSHOP, "many", &["training.max_steps=40", "checkpoint.every=1", "checkpoint.keep_last=0"]);
    let arguments = ["validate", run.to_str().unwrap(), "--json"];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = vec![0; 4096];
    let mut stderr = child.stderr.take().unwrap();
    let mut seen = String::new();
    wait_until("nothing is validated", || {
        let count = stderr.read(&mut said).unwrap();
        seen += &String::from_utf8_lossy(&said[..count]);
        seen.contains("step-000002")
    });
    signal(&child, "INT");
    drop(stderr);
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(ended(&mut child).code(), Some(130), "{printed}");
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let measured = report["checkpoints"].as_array().unwrap().len() as u64;
    assert!(measured >= 2 && report["unmeasured"].as_u64().unwrap() == 41 - measured, "{report}");
}

// The terminal.

#[test]
fn a_run_on_a_terminal_that_is_closed_ends_with_a_checkpoint() {
    for ui in ["bar", "plain", "tui"] {
        let name = format!("closed-{ui}");
        let mut arguments = endless(&name);
        arguments.extend(["--ui", ui].map(String::from));
        let mut command = command(&arguments);
        command.env("TERM", "xterm");
        let (terminal, mut child) = Pty::start(command);
        wait_for_steps(&run(&name), 2);
        terminal.close();
        assert_eq!(ended(&mut child).code(), Some(130), "{name}");
        stopped_at(&run(&name));
    }
}

#[test]
fn colors_and_moving_bars_are_only_for_terminals_that_want_them() {
    let said = |i: usize, environment: (&str, &str)| {
        let arguments =
            with_overrides("train", &overrides(&WORKSHOP, &format!("colours-{i}"), &["training.max_steps=1"]));
        let mut command = command(&arguments);
        // Where tests run by themselves `CI` is set, which changes nothing.
        command.env_remove("NO_COLOR").env("CI", "true").env("TERM", "xterm").env(environment.0, environment.1);
        let (terminal, mut child) = Pty::start(command);
        assert!(ended(&mut child).success());
        terminal.read_all()
    };
    let coloured = |text: &str| {
        text.split('\x1b').skip(1).any(|rest| {
            let end = rest.find(|c: char| c.is_ascii_alphabetic());
            end.is_some_and(|end| rest[end..].starts_with('m'))
        })
    };
    assert!(coloured(&said(0, ("TERM", "xterm-256color"))));
    assert!(coloured(&said(1, ("NO_COLOR", "")))); // empty means not set
    assert!(!coloured(&said(2, ("NO_COLOR", "1"))));
    let dumb = said(3, ("TERM", "dumb"));
    assert!(!dumb.contains('\x1b') && dumb.contains("step 1/1"), "{dumb}");
    let arguments = with_overrides("train", &overrides(&WORKSHOP, "dumb", &[]));
    let mut command = command(&arguments);
    command.args(["--ui", "tui"]).env("TERM", "dumb");
    let (terminal, mut child) = Pty::start(command);
    assert_eq!(ended(&mut child).code(), Some(1));
    assert!(terminal.read_all().contains("`--ui tui`: this terminal cannot move its cursor"));
}

// Several processes, and those that died.

#[test]
fn one_process_writes_in_a_run_folder_and_others_may_read() {
    let name = "shared";
    let first = train(&WORKSHOP, name, &[]);
    let endless: Vec<_> = ENDLESS.into_iter().chain(["checkpoint.every=1", "checkpoint.keep_last=1"]).collect();
    let mut arguments = with_overrides("train", &overrides(&WORKSHOP, name, &endless));
    arguments.extend(["--resume".into(), first.to_str().unwrap().into()]);
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_steps(&first, 5);
    let said = fails(&arguments);
    assert!(said.contains("another kiln is writing to this folder: process ") && said.contains("hint: "), "{said}");
    assert!(said.contains(&format!("process {} on ", child.id())), "{said}");
    // Checkpoints come and go all the time; none goes while it is read.
    for _ in 0..3 {
        succeeds(&["validate", first.to_str().unwrap()]);
        let exported = WORKSHOP.join("shared.safetensors");
        succeeds(&["export", first.to_str().unwrap(), "--output", exported.to_str().unwrap()]);
    }
    // The same name without --resume is another run.
    let other = train(&WORKSHOP, name, &[]);
    assert_eq!(other, run("shared-2"));
    // A killed process leaves no lock.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(first.join(".lock").exists());
    let last = Checkpoint::all(&first).unwrap().last().unwrap().step;
    let length = format!("training.max_steps={}", last + 1);
    let mut arguments = with_overrides("train", &overrides(&WORKSHOP, name, &[&length, "validation.every=0"]));
    arguments.extend(["--resume".into(), first.to_str().unwrap().into()]);
    succeeds(&arguments);
    assert!(!first.join(".lock").exists());
}

#[test]
fn a_run_that_was_killed_before_its_first_checkpoint_starts_again_in_its_folder() {
    let whole = train(&WORKSHOP, "first", &[]);
    for (i, resume) in [false, true].into_iter().enumerate() {
        let name = format!("again-{i}");
        let mut child = command(&endless(&name)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_steps(&run(&name), 2);
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::create_dir_all(run(&name).join("samples")).unwrap();
        std::fs::write(run(&name).join("samples/step-000002.png"), "of steps that are trained again").unwrap();
        std::fs::create_dir_all(run(&name).join("step-000002.partial")).unwrap();
        let mut arguments = with_overrides("train", &overrides(&WORKSHOP, &name, &[]));
        arguments
            .extend(resume.then(|| ["--resume".into(), run(&name).to_str().unwrap().into()]).into_iter().flatten());
        let (out, said) = succeeds(&arguments);
        assert_eq!(out.trim_end(), run(&name).to_str().unwrap());
        assert!(said.contains("has no checkpoint yet: starting over in the same folder"), "{said}");
        assert_eq!((state(&run(&name), 3), numbers(&run(&name))), (state(&whole, 3), numbers(&whole)));
        assert!(names(&run(&name).join("samples")).is_empty() && leftovers(&run(&name)).is_empty());
        check_curves(&run(&name));
    }
    // A folder with anything else in it belongs to somebody.
    std::fs::create_dir_all(run("foreign")).unwrap();
    std::fs::write(run("foreign").join("notes.txt"), "mine").unwrap();
    assert_eq!(train(&WORKSHOP, "foreign", &[]), run("foreign-2"));
}

#[test]
fn what_the_dead_left_goes_at_the_next_start_and_disturbs_nobody() {
    let run = train(&WORKSHOP, "dead", &["checkpoint.every=1"]);
    std::fs::create_dir_all(run.join("samples")).unwrap();
    let cache = WORKSHOP.join("cache/latents");
    let entries = cache.join(&names(&cache)[0]);
    let left = [
        "step-000001.removed/adapter.safetensors",
        "step-000009.partial/adapter.safetensors",
        "model.partial/model_index.json",
    ]
    .map(|name| run.join(name));
    let left = left.into_iter().chain([
        run.join("config.999999999-0.partial"),
        run.join("samples/step-000003.999999999-7.partial"),
        entries.join("abcd.999999999-3.partial"),
    ]);
    for path in left {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half").unwrap();
    }
    succeeds(&["validate", run.to_str().unwrap()]);
    let mut arguments = with_overrides("train", &overrides(&WORKSHOP, "dead", &["training.max_steps=4"]));
    arguments.extend(["--resume".into(), run.to_str().unwrap().into()]);
    succeeds(&arguments);
    assert!(leftovers(&run).is_empty() && leftovers(&entries).is_empty(), "{:?}", leftovers(&run));
}

#[test]
fn a_full_disk_leaves_earlier_checkpoints_and_no_partial_file() {
    let whole = train(&WORKSHOP, "roomy", &["checkpoint.every=2"]);
    let before = train(&WORKSHOP, "full", &["training.max_steps=2", "checkpoint.every=1"]);
    let size = |name: &str| std::fs::metadata(before.join("step-000002").join(name)).unwrap().len();
    // Room for an adapter, but not for its moments; in KiB, as bash counts.
    let blocks = (size("adapter.safetensors") + size("optimizer.safetensors")) / 2 / 1024;
    let mut arguments = with_overrides("train", &overrides(&WORKSHOP, "full", &["checkpoint.every=1"]));
    arguments.extend(["--resume".into(), before.to_str().unwrap().into()]);
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let mut limited = Command::new("bash");
    limited.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_kiln")]).args(&arguments);
    let output = limited.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains("step-000003"), "{said}");
    assert!(leftovers(&before).is_empty() && !before.join("step-000003").exists(), "{:?}", names(&before));
    succeeds(&arguments);
    assert_eq!(state(&before, 3), state(&whole, 3));
    let losses = |run: &Path| numbers(run).into_iter().filter(|(_, name, _)| name == "loss").collect::<Vec<_>>();
    assert_eq!(losses(&before), losses(&whole));
}

// Killed.

/// Pseudo-random numbers.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Twelve steps with everything on that a run writes.
const ALL_FILES: [&str; 7] = [
    "training.max_steps=12",
    "checkpoint.every=2",
    "checkpoint.keep_last=2",
    "validation.every=3",
    "validation.prompts=['a red circle on white']",
    "validation.seeds=[0]",
    "validation.steps=1",
];

/// The undisturbed run, and how long it takes.
static UNHARMED: LazyLock<(PathBuf, Duration)> = LazyLock::new(|| {
    let started = Instant::now();
    (train(&WORKSHOP, "unharmed", &ALL_FILES), started.elapsed())
});

/// Starts a run and resumes it, and kills it each time at the next of `moments`; then lets it end, and compares it with the
/// undisturbed run.
#[track_caller]
fn harm(name: &str, moments: &mut dyn Iterator<Item = Box<dyn Fn() -> bool>>) {
    let (whole, killed) = (&UNHARMED.0, run(name));
    let arguments = |killed: &Path| {
        let mut arguments = with_overrides("train", &overrides(&WORKSHOP, name, &ALL_FILES));
        let resume = killed.join("config.toml").exists().then(|| ["--resume".into(), killed.to_str().unwrap().into()]);
        arguments.extend(resume.into_iter().flatten());
        arguments
    };
    for (kill, has_come) in moments.enumerate() {
        let mut child = command(&arguments(&killed)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while !has_come() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let said = text(child.stderr.take().unwrap());
        assert!(status.success() || status.code().is_none(), "{name}, kill {kill}: {said}");
        for checkpoint in Checkpoint::all(&killed).unwrap_or_default() {
            checkpoint.verify().unwrap_or_else(|error| panic!("{name}, kill {kill}: {error}"));
        }
    }
    let output = kiln(&arguments(&killed));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    for step in [10, 12] {
        assert_eq!(state(&killed, step), state(whole, step), "{name}, step {step}");
    }
    assert_eq!(numbers(&killed), numbers(whole), "{name}");
    let grids = names(&whole.join("samples"));
    assert_eq!((names(&killed.join("samples")), grids.len()), (grids.clone(), 5), "{name}");
    for grid in grids.iter().map(|name| Path::new("samples").join(name)) {
        assert_eq!(std::fs::read(killed.join(&grid)).unwrap(), std::fs::read(whole.join(&grid)).unwrap(), "{grid:?}");
    }
    check_curves(&killed);
    assert!(leftovers(&killed).is_empty() && !killed.join(".lock").exists(), "{name}: {:?}", names(&killed));
    succeeds(&["validate", killed.to_str().unwrap()]);
}

#[test]
fn a_killed_run_resumes_to_the_same_result() {
    // A new seed each time; that of a failure is in the name of its run.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let (mut draws, whole) = (seed, UNHARMED.1.as_nanos() as u64);
    let moments = (0..6).map(|_| {
        let until = Instant::now() + Duration::from_nanos(random(&mut draws) % whole);
        Box::new(move || Instant::now() >= until) as Box<dyn Fn() -> bool>
    });
    harm(&format!("killed-{seed}"), &mut { moments });
}

#[test]
fn a_run_killed_between_two_writes_resumes_to_the_same_result() {
    let moments = [
        "config.toml",
        "metrics.jsonl",
        "samples/step-000000.png",
        "step-000002.partial/adapter.safetensors",
        "step-000002",
        "samples/step-000003.png",
        "step-000006.partial/state.json",
        "step-000006",
        "samples/step-000009.png",
        "step-000012",
        "samples/step-000012.png",
    ];
    let folder = run("killed");
    // One that has already passed does not count.
    let moments = moments.map(|name| folder.join(name)).into_iter().filter(|path| !path.exists());
    harm("killed", &mut moments.map(|path| Box::new(move || path.exists()) as Box<dyn Fn() -> bool>));
}

/// A checkpoint that an older kiln removed only in part is skipped, and reported.
#[test]
fn a_folder_without_a_state_is_no_checkpoint() {
    let run = train(&WORKSHOP, "stateless", &["checkpoint.every=1"]);
    std::fs::remove_file(run.join("step-000001/state.json")).unwrap();
    truncate(run.join("step-000001/adapter.safetensors"));
    let (table, said) = succeeds(&["validate", run.to_str().unwrap()]);
    assert!(table.contains("\n       2  ") && !table.contains("\n       1  "), "{table}");
    assert!(said.contains("step-000001 has no `state.json`"), "{said}");
}
