//! Callers who wait, and their jobs after they disconnect.

use std::{io::Read, net::Shutdown, time::Instant};

use serde_json::{Value, json};

use super::{from_base64, pixels, say};
use crate::support::server::{Server, model, parsed};

/// So many steps that nobody waits for the last.
const LONG: usize = 200;

fn running(server: &Server) -> Option<String> {
    let status = server.get("/kiln/v1/status").expect(200).json();
    status["running"][0].as_str().map(String::from)
}

#[test]
fn a_job_that_nobody_waits_for_any_more_is_cancelled_in_every_dialect() {
    let server = Server::start(&model("nano-flux"), &[]);
    let openai = json!({"prompt": "sun", "size": "64x64", "steps": LONG});
    let mut streamed = openai.clone();
    streamed["stream"] = true.into();
    let automatic = json!({"prompt": "sun", "width": 64, "height": 64, "steps": LONG});
    for (path, body) in
        [("/v1/images/generations", openai), ("/v1/images/generations", streamed), ("/sdapi/v1/txt2img", automatic)]
    {
        let stream = server.send("POST", path, &["content-type: application/json"], body.to_string().as_bytes());
        let id = server.until(|| running(&server));
        let began = Instant::now();
        stream.shutdown(Shutdown::Both).unwrap();
        drop(stream);
        let job = server.finished(&id);
        say(format!("{path}: cancelled after {:?}, at step {}", began.elapsed(), job["step"]));
        assert_eq!(job["status"], "cancelled", "{job}");
        assert!(job["step"].as_u64().unwrap() < LONG as u64, "{job}");
        server.until(|| running(&server).is_none().then_some(()));
    }
    // A caller who submits a job need not stay once it is accepted; before that, the request may be unread.
    let jobs = || server.get("/kiln/v1/jobs").expect(200).json().as_array().unwrap().len();
    let (before, asked) = (jobs(), json!({"prompt": "sun", "width": 64, "height": 64, "steps": 2}));
    let stream = server.send("POST", "/kiln/v1/jobs", &[], asked.to_string().as_bytes());
    server.until(|| (jobs() > before).then_some(()));
    drop(stream);
    server.until(|| {
        let jobs = server.get("/kiln/v1/jobs?status=completed").expect(200).json();
        (jobs.as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn a_job_is_cancelled_while_it_waits_and_while_it_runs() {
    let server = Server::start(&(model("nano-flux") + "[limits]\nrows = 1\n"), &[]);
    let asked = json!({"prompt": "sun", "width": 64, "height": 64, "steps": LONG});
    let (first, second) = (server.submit(&asked), server.submit(&asked));
    server.until(|| running(&server));
    for id in [&second, &first] {
        let path = format!("/kiln/v1/jobs/{id}");
        assert_eq!(server.ask("DELETE", &path, &[], &[]).expect(200).json()["status"], "cancelled");
        assert_eq!(server.finished(id)["status"], "cancelled");
        server.ask("DELETE", &path, &[], &[]).expect(409);
    }
}

const ANN: &str = "authorization: Bearer ann-has-a-long-key";
const BOB: &str = "authorization: Bearer bob-has-another-key";

/// A server with the keys of Ann and Bob.
fn keyed(tables: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), "ann ann-has-a-long-key\nbob bob-has-another-key\n").unwrap();
    let keys = format!("keys = '{}'\n", folder.path().join("keys").display());
    Server::start_in(folder, &(keys + tables), &[])
}

#[test]
fn an_interrupt_reaches_the_jobs_of_its_caller_in_its_dialect_and_no_others() {
    let server = keyed(&model("nano-flux"));
    let body = json!({"prompt": "sun", "width": 64, "height": 64, "steps": LONG}).to_string();
    let own = server.ask("POST", "/kiln/v1/jobs", &[ANN], body.as_bytes()).expect(202).json()["id"]
        .as_str()
        .unwrap()
        .to_string();
    let [mut ann, mut bob] = [ANN, BOB].map(|key| server.send("POST", "/sdapi/v1/txt2img", &[key], body.as_bytes()));
    let progress = |key: &str| server.ask("GET", "/sdapi/v1/progress", &[key], &[]).expect(200).json();
    for key in [ANN, BOB] {
        let shown =
            server.until(|| Some(progress(key)).filter(|shown| shown["state"]["sampling_step"].as_u64() > Some(0)));
        assert_eq!(
            (&shown["state"]["job_count"], &shown["state"]["sampling_steps"]),
            (&json!(1), &json!(LONG)),
            "{shown}"
        );
        assert!(
            (0.0..1.0).contains(&shown["progress"].as_f64().unwrap()) && shown["eta_relative"].as_f64().unwrap() > 0.0,
            "{shown}"
        );
    }
    let image = server.until(|| progress(ANN)["current_image"].as_str().map(String::from));
    let image = pixels(&from_base64(&json!(image)));
    assert_eq!((image.width(), image.height()), (8, 8), "a pixel for each latent pixel");
    let without = server.ask("GET", "/sdapi/v1/progress?skip_current_image=true", &[ANN], &[]).expect(200).json();
    assert!(without["current_image"].is_null() && without["state"]["job_count"] == 1, "{without}");
    server.ask("POST", "/sdapi/v1/interrupt", &[BOB], b"{}").expect(200);
    let answer = |stream: &mut std::net::TcpStream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        parsed(&bytes)
    };
    assert_eq!(answer(&mut bob).expect(409).json()["detail"], "`job`: was cancelled");
    assert_eq!((&progress(BOB)["state"]["job_count"], &progress(BOB)["current_image"]), (&json!(0), &json!(null)));
    assert_eq!(progress(ANN)["state"]["job_count"], 1, "Ann's goes on");
    server.ask("POST", "/sdapi/v1/interrupt", &[ANN], b"").expect(200);
    answer(&mut ann).expect(409);
    let status = |id: &str, key: &str| server.ask("GET", &format!("/kiln/v1/jobs/{id}"), &[key], &[]);
    assert_eq!(status(&own, ANN).expect(200).json()["status"], "running", "what she asked for as a job goes on, too");
    // Nobody else sees it, follows it, fetches from it or cancels it.
    status(&own, BOB).expect(404);
    for path in ["/events", "/images/0"] {
        server.ask("GET", &format!("/kiln/v1/jobs/{own}{path}"), &[BOB], &[]).expect(404);
    }
    server.ask("DELETE", &format!("/kiln/v1/jobs/{own}"), &[BOB], &[]).expect(404);
    assert_eq!(server.ask("GET", "/kiln/v1/jobs?status=running", &[BOB], &[]).expect(200).json(), json!([]));
    server.ask("DELETE", &format!("/kiln/v1/jobs/{own}"), &[ANN], &[]).expect(200);
}

#[test]
fn a_model_that_is_chosen_as_an_option_is_the_choice_of_its_caller() {
    let server = keyed(&(model("nano-flux") + &model("tiny-sd")));
    let chosen = |key: &str| {
        server.ask("GET", "/sdapi/v1/options", &[key], &[]).expect(200).json()["sd_model_checkpoint"].clone()
    };
    let choose = |key: &str, body: Value| server.ask("POST", "/sdapi/v1/options", &[key], body.to_string().as_bytes());
    let answer =
        choose(BOB, json!({"sd_model_checkpoint": "tiny-sd", "eta_noise_seed_delta": 31337})).expect(200).json();
    assert_eq!(answer["ignored"], json!(["eta_noise_seed_delta"]));
    choose(BOB, json!({"sd_model_checkpoint": "nobody"})).expect(404);
    assert_eq!((chosen(ANN), chosen(BOB)), (json!("nano-flux"), json!("tiny-sd")));
    let samplers =
        |key: &str| server.ask("GET", "/sdapi/v1/samplers", &[key], &[]).expect(200).json().as_array().unwrap().len();
    assert!(samplers(ANN) == 1 && samplers(BOB) > 5);
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_runs_keeps_what_waits_and_is_gone_within_thirty_seconds() {
    let tables = model("nano-flux") + "[limits]\nrows = 1\n";
    let server = Server::start(&tables, &[]);
    let short = json!({"prompt": "sun", "width": 64, "height": 64, "steps": 150});
    let (first, second) = (server.submit(&short), server.submit(&short));
    let mut all = server.send("GET", "/kiln/v1/events", &[], &[]);
    let mut of_second = server.send("GET", &format!("/kiln/v1/jobs/{second}/events"), &[], &[]);
    let waiting = json!({"prompt": "key", "size": "64x64", "steps": LONG}).to_string();
    let mut synchronous = server.send("POST", "/v1/images/generations", &[], waiting.as_bytes());
    server.until(|| running(&server));
    server.until(|| (server.get("/kiln/v1/status").json()["queue"]["depth"] == 2).then_some(()));
    let (status, taken, folder) = server.stop();
    say(format!("stopped after {taken:?}"));
    assert!(status.success() && taken.as_secs() < 30, "{status} after {taken:?}");
    let mut rest = Vec::new();
    for stream in [&mut all, &mut of_second] {
        stream.read_to_end(&mut rest).unwrap(); // both ended
    }
    rest.clear();
    synchronous.read_to_end(&mut rest).unwrap();
    let refused = parsed(&rest).expect(503);
    assert_eq!(
        (refused.json()["error"]["code"].as_str(), refused.header("retry-after")),
        (Some("stopping"), Some("30"))
    );

    // Accepted jobs are done by the next server; those of waiting callers are not.
    let server = Server::start_in(folder, &tables, &[]);
    for id in [&first, &second] {
        assert_eq!(server.finished(id)["status"], "completed");
    }
    let left = server.get("/kiln/v1/jobs").expect(200).json();
    let left: Vec<_> = left.as_array().unwrap().iter().filter(|job| job["request"]["prompt"] == "key").collect();
    assert!(left.iter().all(|job| job["status"] == "cancelled"), "{left:?}");
}
