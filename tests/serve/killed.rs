//! A server that is killed in the middle of its work loses no accepted job, and retries none forever.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kiln::serve::{
    config::LOCAL,
    job::{JobId, JobRequest, Status},
};

use crate::support::serving::{config, images, metric, request, start, wait};

/// The variables that tell the child its state folder and its task.
const STATE: &str = "KILN_TEST_STATE";
const WORK: &str = "KILN_TEST_WORK";

/// Not a test: the server that is killed. It accepts jobs as fast as it can, or one that takes long, and prints them.
#[test]
#[ignore = "it is started by the others"]
fn server() {
    let Some(state) = std::env::var_os(STATE) else { return };
    let mut config = config(Path::new(&state));
    config.limits.queue = 1000;
    let service = start(config);
    let mut out = std::io::stdout();
    let mut say = |text: String| out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap();
    if std::env::var(WORK).is_ok_and(|work| work == "long") {
        let long = JobRequest { width: Some(64), height: Some(64), ..request("a red apple", 1, 200) };
        let id = service.submit(long, LOCAL, Some("long")).unwrap().id;
        crate::support::serving::until("it runs", || service.job(id, LOCAL).unwrap().step > 0);
        say(format!("\naccepted {id}\n"));
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let mut told = std::collections::BTreeSet::new();
    let first = service.jobs(LOCAL).len() as u64;
    for number in first.. {
        let id = service.submit(request("a key", number, 1 + number as usize % 3), LOCAL, None).unwrap().id;
        say(format!("\naccepted {id}\n"));
        for job in service.jobs(LOCAL) {
            if job.status == Status::Completed && told.insert(job.id) {
                let image = service.image(job.id, LOCAL, 0).unwrap();
                say(format!("\ncompleted {} {}\n", job.id, blake3::hash(&image)));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn child(state: &Path, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["killed::server", "--exact", "--ignored", "--nocapture"])
        .env(STATE, state)
        .env(WORK, work)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn no_accepted_job_is_lost_and_no_image_changes_after_it_was_told() {
    let state = tempfile::tempdir().unwrap();
    let kills = std::env::var("KILN_TEST_KILLS").map_or(8, |count| count.parse().unwrap());
    let (mut accepted, mut completed) = (Vec::<JobId>::new(), BTreeMap::<JobId, String>::new());
    for round in 0..kills {
        let mut child = child(state.path(), "many");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // More and more of it: in the middle of a start, of an acceptance, of a step, of an image.
        let until = accepted.len() + 1 + (round * 7) % 13;
        let mut lines = lines.map_while(Result::ok);
        let mut read = |line: String| {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["accepted", id] => accepted.push(id.parse().unwrap()),
                ["completed", id, hash] => {
                    let before = completed.insert(id.parse().unwrap(), hash.into());
                    assert!(before.is_none_or(|before| before == hash), "another image of {id}");
                }
                _ => {}
            }
            accepted.len()
        };
        // Now and then before anything was finished.
        let mut is_finished = round % 4 == 3;
        for line in lines.by_ref() {
            is_finished |= line.starts_with("completed");
            if read(line) >= until && is_finished {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(777 * (round as u64 % 17)));
        child.kill().unwrap();
        child.wait().unwrap();
        // The rest of its output.
        lines.for_each(|line| _ = read(line));
    }
    assert!(
        accepted.len() >= kills && !completed.is_empty(),
        "{} accepted, {} completed",
        accepted.len(),
        completed.len()
    );
    let service = start(config(state.path()));
    let mut given_up = 0;
    for id in &accepted {
        let job = wait(&service, *id);
        match job.status {
            Status::Completed => {
                let hash = blake3::hash(&images(&service, *id)[0]).to_string();
                assert!(completed.get(id).is_none_or(|told| *told == hash), "{id}: another image than before");
            }
            // Killed three times in the middle of it.
            Status::Failed if job.error.as_ref().is_some_and(|error| error.message.contains("3 times")) => {
                given_up += 1
            }
            other => panic!("{id}: {other:?} {:?}", job.error),
        }
    }
    assert!(4 * given_up <= accepted.len(), "{given_up} of {} jobs were given up", accepted.len());
    let known: Vec<_> = service.jobs(LOCAL).into_iter().map(|job| job.id).collect();
    assert!(known.len() >= accepted.len() && accepted.iter().all(|id| known.contains(id)));
}

#[test]
fn a_job_during_which_servers_die_is_restarted_twice_and_then_failed() {
    let state = tempfile::tempdir().unwrap();
    let mut ids = Vec::<JobId>::new();
    for _ in 0..3 {
        let mut child = child(state.path(), "long");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let id = lines.find_map(|line| Some(line.strip_prefix("accepted ")?.parse().unwrap()));
        ids.push(id.expect("the child begins the job"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "it is one job");
    let service = start(config(state.path()));
    let job = service.job(ids[0], LOCAL).unwrap();
    assert_eq!(job.status, Status::Failed);
    assert!(job.error.unwrap().message.contains("ended unexpectedly 3 times"));
    let next = service.submit(request("a key", 1, 1), LOCAL, None).unwrap().id;
    assert_eq!(wait(&service, next).status, Status::Completed);
    assert_eq!(metric(&service, "kiln_jobs_begun_again_total"), 0.0);
}
