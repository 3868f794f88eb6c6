//! A server and its workers on a real NATS server: what dies loses nothing. Needs `nats-server` in the `PATH`, or its path in
//! `KILN_TEST_NATS`.
#![cfg(unix)]

mod machines;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::machines::{Machines, Worker};
use crate::support::server::{PATIENCE, Server, model};

/// A small job with a seed of its own; every fourth wears an adapter, every third starts from an image.
fn asked(number: usize) -> Value {
    let steps = 2 + number % 4;
    let mut job = json!({"prompt": "a red apple", "seed": 1000 + number, "steps": steps, "width": 32, "height": 32,
        "count": 1 + number % 2});
    if number.is_multiple_of(4) {
        job["loras"] = json!([{"name": format!("a{}", number % 8 / 4), "scale": 0.8}]);
    }
    if number.is_multiple_of(3) {
        job["image"] = machines::picture(number as u8).into();
        job["strength"] = 0.7.into();
    }
    job
}

/// The PNG files of a job that is to be completed.
#[track_caller]
fn files(server: &Server, id: &str) -> Vec<Vec<u8>> {
    let job = server.finished(id);
    assert_eq!(job["status"], "completed", "{job}");
    let count = job["images"].as_array().unwrap().len();
    (0..count).map(|number| server.get(&format!("/kiln/v1/jobs/{id}/images/{number}")).expect(200).body).collect()
}

#[test]
fn every_job_ends_once_and_as_on_one_machine_though_a_worker_is_killed_in_the_middle() {
    let Some(machines) = Machines::start("every_job_ends_once") else { return };
    let server = machines.server();
    let (first, _second) = (machines.worker(), machines.worker());
    let ids: Vec<String> = (0..24).map(|number| server.submit(&asked(number))).collect();
    // It has some in hand, and others are not begun.
    server.until(|| (first.log().matches("delivery 1").count() > 1).then_some(()));
    first.kill();
    let made: Vec<_> = ids.iter().map(|id| files(&server, id)).collect();
    let alone = Server::start(&machines.alone(), &[]);
    for (number, (id, made)) in ids.iter().zip(made).enumerate() {
        let expected = files(&alone, &alone.submit(&asked(number)));
        assert_eq!(made, expected, "job {number} ({id})");
    }
    let metrics = String::from_utf8(server.get("/metrics").expect(200).body).unwrap();
    let ended = metrics.lines().find(|line| line.starts_with("kiln_jobs_ended_total{outcome=\"completed\"}")).unwrap();
    assert!(ended.ends_with(" 24"), "{ended}");
    machines.is_empty(&server);
}

#[test]
fn a_job_that_is_cancelled_ends_at_its_worker_within_a_step() {
    let Some(machines) = Machines::start("a_job_that_is_cancelled") else { return };
    let server = machines.server();
    let worker = machines.worker();
    for round in 0..5 {
        let long = json!({"prompt": "sun", "seed": round, "steps": 200, "width": 64, "height": 64, "previews": true});
        let id = server.submit(&long);
        let path = format!("/kiln/v1/jobs/{id}");
        server.until(|| (server.get(&path).expect(200).json()["step"].as_u64()? > 2).then_some(()));
        let step = server.get(&path).expect(200).json()["step"].as_u64().unwrap();
        let began = Instant::now();
        server.ask("DELETE", &path, &[], &[]).expect(200);
        let job = server.finished(&id);
        assert_eq!(job["status"], "cancelled", "{job}");
        server.until(|| (worker.log().matches(": cancelled in").count() > round).then_some(()));
        machines::say(format!("cancelled at its worker {:?} after step {step}", began.elapsed()));
        // One that waits is begun by nobody.
        let next = files(&server, &server.submit(&asked(round)));
        assert!(!next.is_empty() && began.elapsed() < PATIENCE);
    }
    assert!(!worker.log().contains("completed in 200"), "{}", worker.log());
    machines.is_empty(&server);
}

#[test]
fn a_server_that_dies_finds_what_was_made_meanwhile_and_what_was_not() {
    let Some(machines) = Machines::start("a_server_that_dies") else { return };
    let server = machines.server();
    let worker = machines.worker();
    let ids: Vec<String> = (0..10).map(|number| server.submit(&asked(number))).collect();
    server.until(|| worker.log().contains("delivery 1").then_some(()));
    let folder = machines.killed(server);
    // Nobody listens, and the work goes on.
    let began = Instant::now();
    while worker.log().matches(": completed in").count() < 5 {
        assert!(began.elapsed() < PATIENCE, "{}", worker.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let server = machines.server_in(folder);
    let alone = Server::start(&machines.alone(), &[]);
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(files(&server, id), files(&alone, &alone.submit(&asked(number))), "job {number}");
    }
    machines.is_empty(&server);
}

#[test]
fn a_worker_that_stops_finishes_its_jobs_or_gives_them_back() {
    let Some(machines) = Machines::start("a_worker_that_stops") else { return };
    let server = machines.server();
    let first = machines.worker();
    let ids: Vec<String> = (0..12).map(|number| server.submit(&asked(number))).collect();
    server.until(|| (first.log().matches("delivery 1").count() > 1).then_some(()));
    let (status, after) = first.stop();
    assert!(status.success() && after < Duration::from_secs(30), "{status} after {after:?}");
    let _second = machines.worker();
    let all: BTreeSet<_> = ids.iter().map(|id| files(&server, id)).collect();
    assert_eq!(all.len(), ids.len());
}

#[test]
fn a_queue_that_is_started_again_and_one_that_lost_everything_lose_no_job() {
    let Some(mut machines) = Machines::start("a_queue_that_is_started_again") else { return };
    let server = machines.server();
    let worker = machines.worker();
    let mut ids = Vec::new();
    for keeps in [true, false, true] {
        // More than the worker takes at a time.
        ids.extend((0..16).map(|number| server.submit(&asked(number))));
        server.until(|| (worker.log().matches("delivery 1").count() > ids.len() - 16).then_some(()));
        machines.restart_queue(keeps);
        server.until(|| (server.get("/readyz").status == 200).then_some(()));
    }
    ids.push(server.submit(&asked(4)));
    for id in &ids {
        files(&server, id);
    }
}

#[test]
fn who_waits_for_a_queue_that_is_down_stops_when_asked_to() {
    let Some(mut machines) = Machines::start("who_waits_for_a_queue") else { return };
    let worker = machines.worker();
    let photos = machines.photos(2);
    let mut batch = machines.batch(&photos, "another-model", "far", true).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2)); // until it waits for a worker with this model
    machines.stop_queue();
    std::thread::sleep(Duration::from_secs(1));
    let (status, after) = worker.stop();
    assert!(status.success() && after < Duration::from_secs(10), "{status} after {after:?}");
    let began = Instant::now();
    // SAFETY: the process is a child that was not waited for, so its number is its own.
    unsafe { libc::kill(batch.id() as i32, libc::SIGINT) };
    assert!(!batch.wait().unwrap().success() && began.elapsed() < Duration::from_secs(10));
    assert!(machines.folder.path().join("far/report.json").is_file());
}

#[test]
fn a_job_that_is_given_back_again_and_again_is_made_all_the_same() {
    let Some(machines) = Machines::start("a_job_that_is_given_back") else { return };
    let server = machines.server();
    let id = server.submit(&asked(1));
    for _ in 0..5 {
        let other = machines.worker_with(&model("tiny-flux").replace("tiny-flux\"\n", "nano-flux\"\n"));
        let (status, log) = other.ended();
        assert!(!status.success() && log.contains("given back"), "{log}");
    }
    let _worker = machines.worker();
    files(&server, &id);
}

#[test]
fn a_job_that_is_too_large_for_the_queue_fails_alone() {
    let Some(machines) = Machines::start("a_job_that_is_too_large") else { return };
    let server = machines.server();
    let large = server.submit(&json!({"prompt": "sun ".repeat(3000), "width": 32, "height": 32, "steps": 2}));
    let _worker = machines.worker();
    files(&server, &server.submit(&asked(1)));
    let job = server.finished(&large);
    assert_eq!(job["status"], "failed", "{}", job["status"]);
    assert!(job["error"]["message"].as_str().unwrap().contains("too large for the queue"), "{}", job["error"]);
}

#[test]
fn a_job_that_no_worker_survives_is_failed_and_others_are_not() {
    let Some(machines) = Machines::start("a_job_that_no_worker_survives") else { return };
    let server = machines.server();
    let id = server.submit(&json!({"prompt": "sun", "seed": 1, "steps": 200, "width": 64, "height": 64}));
    for delivery in 1..=3 {
        let worker = machines.worker();
        server.until(|| worker.log().contains(&format!("delivery {delivery}")).then_some(()));
        worker.kill();
    }
    let _worker = machines.worker();
    let job = server.finished(&id);
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("3 workers"), "{job}");
    files(&server, &server.submit(&asked(1)));
}

#[test]
fn another_release_and_another_model_of_the_same_name_are_refused() {
    let Some(machines) = Machines::start("another_release") else { return };
    let server = machines.server();
    let other = machines.worker_with(&model("tiny-flux").replace("tiny-flux\"\n", "nano-flux\"\n"));
    let id = server.submit(&asked(1));
    let (status, log) = other.ended();
    assert!(!status.success() && log.contains("the model `nano-flux` of the server has other files"), "{log}");
    let _worker: Worker = machines.worker();
    files(&server, &id);
}

#[test]
fn a_worker_that_would_have_others_lose_their_jobs_is_refused() {
    let Some(machines) = Machines::start("a_worker_that_would") else { return };
    let _worker = machines.worker();
    let other = machines.cluster().replace("silence_seconds = 2", "silence_seconds = 1");
    let (status, log) = machines.worker_of(&model("nano-flux"), &other).0.ended();
    assert!(!status.success() && log.contains("cluster.silence_seconds") && log.contains("2 in the queue"), "{log}");
}

#[test]
fn a_folder_is_fed_to_workers_though_one_is_killed_and_comes_back_as_from_one_machine() {
    let Some(machines) = Machines::start("a_folder_is_fed") else { return };
    let photos = machines.photos(200);
    let (first, second) = (machines.worker(), machines.worker());
    let began = Instant::now();
    let mut batch = machines.batch(&photos, "nano-flux", "far", true).spawn().unwrap();
    // Each has some in hand.
    while first.log().matches("delivery 1").count() < 20 || second.log().matches("delivery 1").count() < 5 {
        assert!(began.elapsed() < PATIENCE && batch.try_wait().unwrap().is_none(), "{}", first.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill();
    assert!(batch.wait().unwrap().success());
    machines::say(format!("200 images by two workers, one of them killed: {:?}", began.elapsed()));
    let nano = crate::support::serving::root("checkpoints/nano-flux");
    assert!(machines.batch(&photos, nano.to_str().unwrap(), "near", false).status().unwrap().success());
    for number in 0..200 {
        let name = format!("{number:03}.png");
        let read = |folder: &str| std::fs::read(machines.folder.path().join(folder).join(&name)).unwrap();
        assert_eq!(read("far"), read("near"), "{name}");
    }
    let report = std::fs::read(machines.folder.path().join("far/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["pictures"].as_array().unwrap().len(), 200);
    assert_eq!(report["skipped"].as_array().unwrap().len(), 0);
}
