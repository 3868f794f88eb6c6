//! Hostile input: nothing gets in, nothing breaks.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{base64, halves, say};
use crate::support::server::{Answer, Server, form, model, parsed};

/// A random number generator with the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    /// The bytes with a few of them changed, removed, doubled or cut off.
    fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        const ODD: [&[u8]; 14] = [
            b"\"",
            b"{",
            b"}",
            b"[[[[",
            b"null",
            b"-1",
            b"1e999",
            b"\0",
            b"\xff\xfe",
            b"\r\n--border\r\n",
            b"../",
            b"%2e%2e%2f",
            b"99999999999999999999",
            b"\\u0000",
        ];
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.roll(4) {
            let at = self.roll(bytes.len().max(1)).min(bytes.len());
            match self.roll(5) {
                0 if at < bytes.len() => bytes[at] = self.roll(256) as u8,
                1 => bytes.truncate(at),
                2 => _ = bytes.drain(at..(at + self.roll(20)).min(bytes.len())),
                3 => {
                    let piece = bytes[at..(at + self.roll(40)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => _ = bytes.splice(at..at, ODD[self.roll(ODD.len())].iter().copied()),
            }
        }
        bytes
    }
}

/// Everything below a folder but what is in its state, by name.
fn tree(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn send(server: &Server, bytes: &[u8]) -> Answer {
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    parsed(&answer)
}

/// A refusal or an answer, but never an internal error.
#[track_caller]
fn is_told(answer: &Answer, what: &[u8]) {
    let fine = (200..500).contains(&answer.status) || answer.status == 503;
    assert!(fine, "{}: {answer}", String::from_utf8_lossy(&what[..what.len().min(3000)]));
    if answer.status >= 400 && answer.header("content-type").is_some_and(|kind| kind.contains("json")) {
        let body = answer.json();
        assert!(body.get("error").or(body.get("detail")).is_some(), "{answer}");
    }
}

#[test]
fn broken_json_and_forms_are_refused_and_leave_the_server_as_it_was() {
    let server = Server::start(&(model("nano-flux") + &model("tiny-sd") + "[limits]\nsteps = 2\npixels = 4096\n"), &[]);
    let image = base64(&halves(16, 16));
    let native = json!({
        "prompt": "sun", "negative_prompt": "x", "count": 1, "seed": 1, "width": 64, "height": 64, "steps": 1, "guidance": 1.0,
        "loras": [{"name": "a", "scale": 1.0}], "image": image, "strength": 0.5, "previews": true,
    });
    let openai = json!({"prompt": "sun", "n": 1, "size": "64x64", "steps": 1, "lora": [{"name": "a"}], "stream": true, "partial_images": 1});
    let automatic = json!({
        "prompt": "sun <lora:a:1>", "seed": -1, "steps": 1, "width": 64, "height": 64, "cfg_scale": 1, "init_images": [image],
        "override_settings": {"sd_model_checkpoint": "tiny-sd"}, "sampler_name": "DDIM", "mask": image,
    });
    let parts = form(&[
        ("prompt", None, b"sun"),
        ("image", Some("a.png"), &halves(16, 16)),
        ("mask", Some("m.png"), &halves(16, 16)),
        ("n", None, b"1"),
        ("steps", None, b"1"),
        ("lora[][name]", None, b"a"),
    ]);
    let before = tree(server.folder.path());
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut refused, rounds) = (0, 150);
    for round in 0..rounds {
        let json = |value: &Value| value.to_string().into_bytes();
        for (path, kind, body) in [
            ("/kiln/v1/jobs", "application/json", json(&native)),
            ("/v1/images/generations", "application/json", json(&openai)),
            ("/sdapi/v1/img2img", "application/json", json(&automatic)),
            ("/sdapi/v1/options", "application/json", json(&automatic)),
            ("/v1/images/edits", "multipart/form-data; boundary=border", parts.clone()),
            ("/kiln/v1/loras?name=a", "application/octet-stream", parts.clone()),
        ] {
            let body = if round == 0 { body } else { dice.mutated(&body) };
            let answer = server.ask("POST", path, &[&format!("content-type: {kind}")], &body);
            is_told(&answer, &body);
            refused += usize::from(answer.status >= 400);
        }
    }
    say(format!("{refused} of {} were refused", 6 * rounds));
    assert!(refused > 3 * rounds);
    // The same with broken headers.
    let head = format!(
        "POST /v1/images/edits HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary=border\r\nlast-event-id: 3\r\nidempotency-key: a\r\ncontent-length: {}\r\n\r\n",
        server.address,
        parts.len()
    );
    for _ in 0..rounds {
        let mut bytes = dice.mutated(head.as_bytes());
        // The server waits for unfinished headers.
        bytes.extend_from_slice(b"\r\n\r\n");
        let stream = server.connect();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        _ = (&stream).write_all(&bytes);
        _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        _ = (&stream).read_to_end(&mut answer);
        let answer = parsed(&answer);
        assert!(answer.status < 500, "{}: {answer}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(tree(server.folder.path()), before);
    server.get("/healthz").expect(200);
    let log = server.log();
    assert!(
        !log.contains("panicked") && !log.contains("mistake of its own") && !log.contains("internal error"),
        "{log}"
    );
    let job = server.submit(&json!({"prompt": "sun", "width": 64, "height": 64, "steps": 1}));
    assert_eq!(server.finished(&job)["status"], "completed");
}

#[test]
fn no_path_of_a_client_reaches_the_disk() {
    let server = Server::start(&model("nano-flux"), &[]);
    let secret = server.folder.path().join("secret.safetensors");
    std::fs::write(&secret, "secret words").unwrap();
    std::os::unix::fs::symlink(&secret, server.state().join("link.safetensors")).unwrap();
    let before = tree(server.folder.path());
    let body = b"not a file of tensors";
    let ups = [
        "..",
        "../secret",
        "%2e%2e%2fsecret",
        "..%2fsecret",
        "%2e%2e/%2e%2e/secret",
        "....//secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "a%00b",
        "link",
        "con",
        ".hidden",
        "a/../../secret",
        "%252e%252e%252fsecret",
        "..%5csecret",
        "%c0%ae%c0%ae%2fsecret",
    ];
    for up in ups {
        for (method, path) in [
            ("POST", format!("/kiln/v1/loras?name={up}")),
            ("DELETE", format!("/kiln/v1/loras/{up}")),
            ("GET", format!("/kiln/v1/jobs/{up}")),
            ("GET", format!("/kiln/v1/jobs/{up}/images/0")),
            ("GET", format!("/kiln/v1/jobs/00000000-0000-0000-0000-000000000000/images/{up}")),
            ("GET", format!("/kiln/v1/jobs/{up}/events")),
            ("POST", format!("/kiln/v1/models/{up}/load")),
            ("GET", format!("/{up}")),
            ("GET", format!("/kiln/v1/{up}")),
        ] {
            let answer = server.ask(method, &path, &[], body);
            assert!(!String::from_utf8_lossy(&answer.body).contains("secret words"), "{path}: {answer}");
            assert!(
                (400..500).contains(&answer.status)
                    || path.starts_with("/") && !path.starts_with("/kiln/") && answer.status == 200,
                "{path}: {answer}"
            );
        }
        for asked in [json!({"prompt": "x", "loras": [{"name": up}]}), json!({"prompt": "x", "model": up})] {
            server.post("/kiln/v1/jobs", &asked).expect(400);
        }
    }
    assert_eq!(tree(server.folder.path()), before);
    assert!(!Path::new("/etc/passwd.safetensors").exists());
    server.get("/healthz").expect(200);
}

#[test]
fn headers_without_end_and_requests_in_pieces_hold_nobody_up() {
    let server = Server::start(&model("nano-flux"), &[]);
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = server.connect();
        stream
            .write_all(b"POST /kiln/v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 30000000\r\n\r\n{")
            .unwrap();
        idle.push(stream);
    }
    let long = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = send(&server, long.as_bytes());
    assert!([0, 431].contains(&answer.status), "{answer}");
    server.get("/healthz").expect(200);
    let job = server.submit(&json!({"prompt": "sun", "width": 64, "height": 64, "steps": 1}));
    assert_eq!(server.finished(&job)["status"], "completed");
}
