//! A thousand clients at once.

use std::{
    io::Read,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use super::say;
use crate::support::server::{Answer, Server, model, parsed};

const CLIENTS: usize = 1000;

#[test]
fn of_a_thousand_clients_as_many_are_accepted_as_the_queue_holds_and_the_rest_is_told_when_to_try_again() {
    let server = Server::start(&(model("nano-flux") + "[limits]\nqueue = 64\nrows = 2\nsteps = 1000\n"), &[]);
    // None of these ends in the meantime.
    let body = json!({"prompt": "sun", "width": 64, "height": 64, "steps": 1000}).to_string();
    let busy = server.submit(&serde_json::from_str(&body).unwrap());
    server.until(|| (server.get(&format!("/kiln/v1/jobs/{busy}")).json()["status"] == "running").then_some(()));

    let (start, done) = (Barrier::new(CLIENTS + 1), AtomicBool::new(false));
    let (answers, alive): (Vec<Answer>, Vec<Duration>) = std::thread::scope(|scope| {
        let ask = || {
            start.wait();
            let mut stream = server.send("POST", "/kiln/v1/jobs", &["content-type: application/json"], body.as_bytes());
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            parsed(&bytes)
        };
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, ask).unwrap())
            .collect();
        let probe = scope.spawn(|| {
            let mut taken = Vec::new();
            start.wait();
            while !done.load(Ordering::Relaxed) || taken.len() < 100 {
                let began = Instant::now();
                server.get("/healthz").expect(200);
                taken.push(began.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            taken
        });
        let answers: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed); // the probe ends also where a client has failed
        (answers.into_iter().map(|answer| answer.unwrap()).collect(), probe.join().unwrap())
    });

    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(
        accepted + refused.len(),
        CLIENTS,
        "{:?}",
        answers.iter().find(|answer| ![202, 429].contains(&answer.status))
    );
    for answer in refused {
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{answer}");
        assert_eq!(answer.json()["error"]["code"], "queue_full");
    }
    let status = server.get("/kiln/v1/status").expect(200).json();
    let running = status["running"].as_array().unwrap().len();
    assert_eq!(status["queue"]["depth"], 64, "the queue is full: {status}");
    // The earlier one, those that started since, and a full queue.
    assert_eq!(accepted + 1, 64 + running, "{status}");
    let mut alive = alive;
    alive.sort();
    let p99 = alive[alive.len() * 99 / 100];
    say(format!(
        "{accepted} accepted; /healthz answered {} times, p99 after {p99:?}, at most {:?}",
        alive.len(),
        alive[alive.len() - 1]
    ));
    assert!(p99 < Duration::from_secs(1), "{p99:?}");

    // All of them go, and then there is room again.
    let jobs = server.get("/kiln/v1/jobs?limit=1000").expect(200).json();
    let open =
        jobs.as_array().unwrap().iter().filter(|job| ["queued", "running"].contains(&job["status"].as_str().unwrap()));
    assert_eq!(open.clone().count(), 64 + running);
    for job in open {
        server.ask("DELETE", &format!("/kiln/v1/jobs/{}", job["id"].as_str().unwrap()), &[], &[]).expect(200);
    }
    let job = server.submit(&json!({"prompt": "sun", "width": 64, "height": 64, "steps": 1}));
    assert_eq!(server.finished(&job)["status"], "completed");
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.id())).map_or(0, |entries| entries.count());
    assert!(files < 100, "{files} files are still open");
}
