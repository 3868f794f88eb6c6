//! Runs watched through the server while they are written.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{RUNS, Server, get, serve};
use crate::support::program::command;

/// The lines of a stream of events.
fn listen(server: &Server) -> std::sync::mpsc::Receiver<String> {
    let stream = server.send("GET", "/kiln/v1/events", &[], &[]);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn a_finished_run_shows_all_that_it_left() {
    let server = serve(&[&RUNS], &[]);
    let runs = get(&server, "/runs");
    let run = &runs[0];
    assert_eq!((run["name"].as_str(), run["state"].as_str()), (Some("quickstart"), Some("finished")), "{runs}");
    assert_eq!((run["step"].as_u64(), run["max_steps"].as_u64()), (Some(4), Some(4)));
    let detail = get(&server, "/runs/quickstart");
    let steps: Vec<_> = detail["checkpoints"].as_array().unwrap().iter().map(|one| one["step"].as_u64()).collect();
    assert_eq!(steps, [Some(2), Some(4)]);
    assert!(detail["best_step"].is_u64() && detail["config"].as_str().unwrap().contains("max_steps = 4"));
    let written = fs::read_to_string(RUNS.join("quickstart/metrics.jsonl")).unwrap();
    let curve = get(&server, "/runs/quickstart/metrics");
    assert_eq!(curve["records"].as_array().unwrap().len(), written.lines().count());
    let file = detail["samples"][0]["file"].as_str().unwrap();
    let sample = server.ask("GET", &format!("/kiln/v1/runs/quickstart/samples/{file}"), &[], &[]).expect(200);
    assert_eq!(sample.body, fs::read(RUNS.join("quickstart/samples").join(file)).unwrap());
    for path in
        ["/runs/..", "/runs/none", "/runs/quickstart/samples/..%2Fconfig.toml", "/runs/quickstart%2F..%2Fquickstart"]
    {
        assert_eq!(server.ask("GET", &format!("/kiln/v1{path}"), &[], &[]).status, 404, "{path}");
    }
    assert_eq!(server.ask("POST", "/kiln/v1/runs/quickstart/stop", &[], &[]).status, 409);
}

#[test]
fn a_checkpoint_can_be_served_and_changes_the_image() {
    let server = serve(&[&RUNS], &[]);
    let path = "/kiln/v1/runs/quickstart/checkpoints/4/serve";
    let lora = server.ask("POST", path, &[], &[]).expect(201).json();
    assert_eq!((lora["name"].as_str(), lora["fits"][0].as_str()), (Some("quickstart-step-4"), Some("nano-flux")));
    for missing in ["3", "x", "4%2F..%2F2"] {
        let path = format!("/kiln/v1/runs/quickstart/checkpoints/{missing}/serve");
        assert_eq!(server.ask("POST", &path, &[], &[]).status, 404, "{missing}");
    }
    assert!(get(&server, "/loras").as_array().unwrap().iter().any(|lora| lora["name"] == "quickstart-step-4"));
}

#[test]
fn a_point_that_is_written_is_told_within_a_second_and_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("foreign");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("config.toml"), "written = 'by another version'\n").unwrap();
    fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":0.5}\n").unwrap();
    let server = serve(&[folder.path()], &[]);
    let first = get(&server, "/runs/foreign/metrics");
    let events = listen(&server);
    std::thread::sleep(Duration::from_millis(1500)); // it has looked once
    let mut file = fs::File::options().append(true).open(run.join("metrics.jsonl")).unwrap();
    file.write_all(b"{\"step\":2,\"loss\":0.4,\"new\":true}\n").unwrap();
    let begun = Instant::now();
    let told =
        std::iter::from_fn(|| events.recv_timeout(Duration::from_secs(20)).ok()).find(|line| line.contains("foreign"));
    let after = begun.elapsed();
    let told = told.expect("the change is told");
    assert!(told.starts_with("data: ") && after < Duration::from_secs(5), "{told} after {after:?}");
    let next = first["next"].as_str().unwrap();
    let more = get(&server, &format!("/runs/foreign/metrics?after={next}"));
    assert_eq!(
        (&more["records"], &more["restarted"]),
        (&json!([{"step": 2, "loss": 0.4, "new": true}]), &json!(false))
    );
}

#[test]
fn a_run_that_trains_stops_with_a_checkpoint_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("run.output='{}'", folder.path().join("runs").display());
    let cache = format!("data.cache='{}'", folder.path().join("cache").display());
    let settings =
        [output.as_str(), cache.as_str(), "training.max_steps=100000", "training.log_every=1", "validation.every=0"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = ["train", "--config", "configs/quickstart.toml"].into_iter().chain(settings).collect();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut training = command(&arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    fs::create_dir_all(folder.path().join("runs")).unwrap();
    let server = serve(&[&folder.path().join("runs")], &[]);
    let begun = Instant::now();
    let is_running = || {
        let runs = get(&server, "/runs");
        runs[0]["state"] == "running" && runs[0]["step"].as_u64() > Some(0)
    };
    while !is_running() {
        let log = || fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(300) && training.try_wait().unwrap().is_none(), "{}", log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(get(&server, "/runs")[0]["eta_seconds"].as_f64() > Some(0.0));
    // Twice: a second signal would end it without saving.
    for _ in 0..2 {
        let answer = server.ask("POST", "/kiln/v1/runs/quickstart/stop", &[], &[]);
        assert!([202, 409].contains(&answer.status), "{answer}");
    }
    let status = training.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{}", fs::read_to_string(folder.path().join("log")).unwrap());
    let detail = get(&server, "/runs/quickstart");
    assert_eq!(
        (detail["state"].as_str(), detail["checkpoints"].as_array().unwrap().len()),
        (Some("ended"), 1),
        "{detail}"
    );
}
