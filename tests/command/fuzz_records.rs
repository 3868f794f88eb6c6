//! A short fuzz of files that kiln itself writes and reads: runs with their checkpoints, the server's configuration, journal and
//! votes.

use std::{fs, path::Path};

use burn::tensor::Device;
use kiln::{
    lora::Lora,
    serve::{Service, config::ServeConfig, run_metrics::Curve, runs::Runs, votes::Votes},
    training::{Checkpoint, Metrics, run_config},
    weights::TensorFile,
};

use super::fuzz::{corpus, fuzz};
use crate::support::{
    program::{copy, workshop},
    serving,
};

#[test]
fn runs_and_their_checkpoints() {
    for name in ["flux", "unet"] {
        let folder = corpus(&format!("run-{name}"), "tests/fixtures/begun_before");
        let run = folder.join(name);
        let runs = Runs::new(vec![folder.clone()]);
        let read = |path: &Path| {
            for checkpoint in Checkpoint::resolve(&run).map(|(_, all)| all).unwrap_or_default() {
                _ = checkpoint.state();
                _ = checkpoint.verify();
                _ = checkpoint.trained(false).and_then(Lora::read);
            }
            if path.extension().is_some_and(|kind| kind == "safetensors")
                && let Ok(file) = TensorFile::open(path)
            {
                file.names().iter().for_each(|name| drop(file.read(name)));
            }
            _ = run_config(&run, &[]);
            _ = Metrics::read(&run);
            _ = Curve::read(&run.join("metrics.jsonl"), Some("1"));
            _ = (runs.list(), runs.detail(name), runs.adapter(name, 2));
        };
        for (file, rounds) in [
            ("config.toml", 150),
            ("metrics.jsonl", 300),
            ("step-000002/state.json", 300),
            ("step-000002/adapter.safetensors", 60),
            ("step-000002/optimizer.safetensors", 60),
            ("step-000002/ema.safetensors", 30),
        ] {
            fuzz(rounds, &folder, &format!("{name}/{file}"), read);
        }
    }
}

#[test]
fn the_configuration_of_the_server() {
    let folder = corpus("serve", "configs");
    fuzz(500, &folder, "serve.toml", |path| drop(ServeConfig::load(path, &[])));
}

#[test]
fn the_journal_and_the_votes_of_the_server() {
    let folder = workshop("fuzz-journal");
    let state = folder.join("state");
    {
        let service = serving::start(serving::config(&state));
        for seed in 0..3 {
            let job = serving::submit(&service, serving::request("a red apple", seed, 2));
            serving::wait(&service, job);
        }
    }
    fs::copy(state.join("jobs.sqlite"), folder.join("jobs.sqlite")).unwrap();
    let damaged = folder.join("damaged");
    fuzz(60, &folder, "jobs.sqlite", |path| {
        _ = fs::remove_dir_all(&damaged);
        copy(&state, &damaged);
        ["jobs.sqlite-wal", "jobs.sqlite-shm"].iter().for_each(|name| _ = fs::remove_file(damaged.join(name)));
        fs::copy(path, damaged.join("jobs.sqlite")).unwrap();
        _ = Service::start(serving::config(&damaged), &Device::flex()).map(|service| service.models());
    });
    let votes = folder.join("votes.sqlite");
    drop(Votes::open(&votes).unwrap());
    fuzz(300, &folder, "votes.sqlite", |path| {
        if let Ok(votes) = Votes::open(path) {
            _ = votes.leaderboard("local", None);
            _ = votes.prompts("local");
        }
    });
}
