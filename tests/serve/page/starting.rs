//! Runs that are started from the page.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Server, get};
use crate::support::server::{Answer, model};

/// The quickstart, shorter or longer, with its output and cache in `folder`.
pub(super) fn config(folder: &Path, steps: usize, more: impl FnOnce(&mut toml::Table)) -> String {
    let mut config: toml::Table = fs::read_to_string("configs/quickstart.toml").unwrap().parse().unwrap();
    let mut set = |table: &str, key: &str, value: toml::Value| {
        let table = config.entry(table).or_insert_with(|| toml::Table::new().into());
        table.as_table_mut().unwrap().insert(key.into(), value);
    };
    set("run", "output", folder.join("runs").to_str().unwrap().into());
    set("data", "cache", folder.join("cache").to_str().unwrap().into());
    set("training", "max_steps", (steps as i64).into());
    set("training", "log_every", 1.into());
    set("checkpoint", "every", (steps as i64).into());
    set("validation", "every", 0.into());
    more(&mut config);
    config.to_string()
}

/// A server whose page shows the runs of `folder` and may start those of its configurations.
fn serve(folder: &Path, takes_text: bool) -> Server {
    let quoted = |name: &str| format!("'{}'", folder.join(name).display());
    let page = format!(
        "[page]\nruns = [{}]\nconfigs = [{}]\npasted_configs = {takes_text}\n",
        quoted("runs"),
        quoted("configs")
    );
    Server::start(&(model("nano-flux") + &page), &[])
}

fn start(server: &Server, what: &Value) -> Answer {
    server.ask("POST", "/kiln/v1/runs", &[], what.to_string().as_bytes())
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_run_is_started_shown_stopped_and_continues_without_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir_all(here.join("configs")).unwrap();
    fs::create_dir_all(here.join("runs")).unwrap();
    fs::write(here.join("configs/long.toml"), config(here, 100_000, |_| ())).unwrap();
    fs::write(here.join("configs/serve.toml"), "port = 7800\n").unwrap();
    let server = serve(here, false);
    let startable = get(&server, "/configs");
    assert_eq!(startable["configs"].as_array().unwrap().len(), 1, "what is no configuration of a run is left out");
    assert_eq!((&startable["configs"][0]["name"], &startable["takes_text"]), (&json!("long"), &json!(false)));

    let started = start(&server, &json!({"config": "long", "name": "first"})).expect(202).json();
    assert_eq!((&started["run"], &started["is_running"]), (&json!("first"), &json!(true)));
    let busy = start(&server, &json!({"config": "long", "name": "second"})).expect(409);
    assert!(busy.to_string().contains("first"), "{busy}");
    let state = |name: &str| {
        let runs = get(&server, "/runs");
        let run = runs.as_array().unwrap().iter().find(|run| run["name"] == name).cloned();
        run.map(|run| (run["state"].as_str().unwrap().to_string(), run["step"].as_u64().unwrap()))
    };
    let log = || fs::read_to_string(server.folder.path().join("state/starts/first.log")).unwrap_or_default();
    until("it trains", || {
        assert!(get(&server, "/configs")["started"]["is_running"] == true, "{}", log());
        state("first").is_some_and(|(state, step)| state == "running" && step > 1)
    });
    server.ask("POST", "/kiln/v1/runs/first/stop", &[], &[]).expect(202);
    until("it has stopped", || get(&server, "/configs")["started"]["is_running"] == false);
    assert_eq!(get(&server, "/configs")["started"].get("problem"), None, "{}", log());
    assert_eq!(get(&server, "/runs/first")["checkpoints"].as_array().unwrap().len(), 1);
    let again = start(&server, &json!({"config": "long", "name": "first"})).expect(400);
    assert!(again.to_string().contains("already"), "{again}");

    // One that is started just before the server ends is trained to its end.
    fs::write(here.join("configs/short.toml"), config(here, 6, |_| ())).unwrap();
    start(&server, &json!({"config": "short", "name": "last"})).expect(202);
    drop(server);
    let metrics = || fs::read_to_string(here.join("runs/last/metrics.jsonl")).unwrap_or_default();
    until("its last step", || metrics().contains("\"step\":6,"));
}

#[test]
fn what_cannot_be_started_is_refused_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir_all(here.join("configs")).unwrap();
    fs::create_dir_all(here.join("runs")).unwrap();
    let little = |config: &mut toml::Table| {
        let limit = "[memory]\nlimit = \"1MiB\"\n".parse::<toml::Table>().unwrap();
        config.extend(limit);
    };
    let elsewhere = |config: &mut toml::Table| {
        config["run"].as_table_mut().unwrap().insert("output".into(), "/tmp/elsewhere".into());
    };
    let missing = |config: &mut toml::Table| {
        config["data"].as_table_mut().unwrap().insert("path".into(), here.join("none").to_str().unwrap().into());
    };
    fs::write(here.join("configs/little.toml"), config(here, 4, little)).unwrap();
    fs::write(here.join("configs/elsewhere.toml"), config(here, 4, elsewhere)).unwrap();
    fs::write(here.join("configs/missing.toml"), config(here, 4, missing)).unwrap();
    let server = serve(here, true);
    let good = config(here, 4, |_| ());
    for (what, status, says) in [
        (json!({"config": "little"}), 422, "memory"),
        (json!({"config": "missing"}), 422, "none"),
        (json!({"config": "elsewhere"}), 400, "run.output"),
        (json!({"config": "../configs/little"}), 404, "not found"),
        (json!({"config": "little", "name": "../x"}), 400, "is not a valid name"),
        (json!({"config": "little", "toml": good}), 400, "not both"),
        (json!({}), 400, "toml"),
        (json!({"toml": "[run]\nname = 1\n"}), 400, "run"),
        (json!({"toml": "x".repeat(70_000)}), 400, "bytes"),
        (json!({"config": "little", "nmae": "x"}), 400, "nmae"),
    ] {
        let answer = start(&server, &what);
        assert!(answer.status == status && answer.to_string().contains(says), "{what}: {answer}");
    }
    assert_eq!((get(&server, "/runs"), get(&server, "/configs").get("started")), (json!([]), None));
    let started = start(&server, &json!({"toml": good, "name": "pasted"})).expect(202).json();
    assert_eq!(started["run"], "pasted");
    until("it has ended", || get(&server, "/configs")["started"]["is_running"] == false);
    assert_eq!(get(&server, "/runs")[0]["state"], "finished", "{}", get(&server, "/configs"));

    // By default a server starts nothing.
    let server = super::serve(&[&here.join("runs")], &[]);
    assert_eq!(get(&server, "/configs"), json!({"enabled": false, "takes_text": false, "configs": []}));
    for what in [json!({"config": "little"}), json!({"toml": good})] {
        let answer = start(&server, &what).expect(403);
        assert!(answer.to_string().contains("page."), "{answer}");
    }
}
