//! Access control: keys, host names, origins of pages, addresses to listen on.

use serde_json::json;

use super::{base64, halves};
use crate::support::{
    program::fails,
    server::{Server, model},
};

fn keyed(more: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let hash = blake3::hash(b"bob-has-another-key").to_hex();
    std::fs::write(folder.path().join("keys"), format!("# people\nann ann-has-a-long-key\nbob blake3:{hash}\n"))
        .unwrap();
    let keys = format!("keys = '{}'\n{more}", folder.path().join("keys").display());
    Server::start_in(folder, &(keys + &model("nano-flux")), &[])
}

#[test]
fn only_who_has_a_key_gets_in_and_everyone_may_ask_whether_the_server_lives() {
    let server = keyed("");
    let models = |header: &str| server.ask("GET", "/kiln/v1/models", &[header], &[]);
    let basic = |text: &str| format!("authorization: Basic {}", base64(text.as_bytes()));
    for header in [
        "authorization: Bearer ann-has-a-long-key",
        "Authorization: bearer bob-has-another-key",
        &basic("ann:ann-has-a-long-key"),
    ] {
        models(header).expect(200);
    }
    for header in [
        "x: y",
        "authorization: Bearer ann",
        &basic("bob:ann-has-a-long-key"),
        "authorization: Bearer",
        "authorization: \u{e9}",
    ] {
        let refused = models(header).expect(401);
        assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "), "{refused}");
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    }
    // In its dialect, for every protected path, whether it exists or not.
    for (path, pointer) in [
        ("/v1/models", "/error/code"),
        ("/v1/none", "/error/code"),
        ("/sdapi/v1/options", "/detail"),
        ("/kiln/v1/none", "/error/code"),
    ] {
        assert!(server.get(path).expect(401).json().pointer(pointer).unwrap().is_string(), "{path}");
    }
    for open in ["/healthz", "/readyz", "/openapi.json", "/metrics"] {
        server.get(open).expect(200);
    }
    // A proxy on this machine forwards requests from elsewhere.
    server.ask("GET", "/metrics", &["x-forwarded-for: 203.0.113.9"], &[]).expect(401);
    let metrics = String::from_utf8(server.get("/metrics").expect(200).body).unwrap();
    assert!(metrics.contains("kiln_http_refused_total{reason=\"invalid_api_key\"}"), "{metrics}");
    assert!(!server.log().contains("long-key") && !metrics.contains("long-key"));
}

#[test]
fn a_page_of_another_site_reaches_the_server_neither_by_a_name_nor_across_origins() {
    let server = Server::start(&("origins = [\"https://example.org\"]\n".to_string() + &model("nano-flux")), &[]);
    let port = server.address.rsplit_once(':').unwrap().1;
    let host = |name: &str| server.ask("GET", "/kiln/v1/models", &[&format!("Host: {name}")], &[]);
    for own in ["localhost", &format!("localhost:{port}"), "127.0.0.1", &format!("[::1]:{port}")] {
        host(own).expect(200);
    }
    for other in ["attacker.example", &format!("attacker.example:{port}"), "localhost.attacker.example", "192.168.0.1"]
    {
        assert_eq!(host(other).expect(403).json()["error"]["code"], "wrong_host");
    }
    let origin = |origin: &str| server.ask("GET", "/kiln/v1/models", &[&format!("origin: {origin}")], &[]);
    let same = origin(&format!("http://{}", server.address)).expect(200);
    assert_eq!(same.header("access-control-allow-origin"), None);
    let listed = origin("https://example.org").expect(200);
    assert_eq!(listed.header("access-control-allow-origin"), Some("https://example.org"));
    assert_eq!(listed.header("access-control-allow-credentials"), None);
    for other in [
        "https://attacker.example",
        "http://example.org",
        "null",
        "https://example.org.attacker.example",
        "http://127.0.0.1:1",
    ] {
        let refused = origin(other).expect(403);
        assert_eq!(
            (refused.json()["error"]["code"].as_str(), refused.header("access-control-allow-origin")),
            (Some("wrong_origin"), None)
        );
    }
    let ask = ["origin: https://example.org", "access-control-request-method: POST"];
    let asked = server.ask("OPTIONS", "/kiln/v1/jobs", &ask, &[]).expect(204);
    assert!(asked.header("access-control-allow-headers").unwrap().contains("authorization"));
    let ask = ["origin: https://attacker.example", "access-control-request-method: POST"];
    server.ask("OPTIONS", "/kiln/v1/jobs", &ask, &[]).expect(403);
    // What a form of another page can send without a preflight request.
    let simple = ["origin: https://attacker.example", "content-type: text/plain"];
    server.ask("POST", "/kiln/v1/jobs", &simple, b"{\"prompt\": \"sun\"}").expect(403);
    assert_eq!(server.get("/kiln/v1/jobs").expect(200).json(), json!([]));
}

#[test]
fn a_server_without_keys_listens_nowhere_else_and_one_that_cannot_listen_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("serve.toml");
    let text = format!("state = '{}'\n{}", folder.path().join("state").display(), model("nano-flux"));
    std::fs::write(&config, &text).unwrap();
    let config = config.to_str().unwrap();
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        let said = fails(&["serve", "--config", config, "--host", address, "--port", "0"]);
        assert!(said.contains("`--host`") && said.contains("no keys are configured"), "{said}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = fails(&["serve", "--config", config, "--port", &port]);
    assert!(said.contains("`--port`: cannot listen on 127.0.0.1"), "{said}");
    assert!(!folder.path().join("state").exists(), "nothing was begun");
    std::fs::write(folder.path().join("keys"), "ann short\n").unwrap();
    let keys = format!("keys='{}'", folder.path().join("keys").display());
    let said = fails(&["serve", "--config", config, "--set", &keys]);
    assert!(said.contains("line 1: a key must have at least 16 characters"), "{said}");
    let said = fails(&["serve", "--config", config, "--set", "origins=['*']", "--port", "0"]);
    assert!(said.contains("`origins`: `*` is not an origin"), "{said}");
}

#[test]
fn with_keys_other_machines_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), "ann ann-has-a-long-key\n").unwrap();
    let keys = format!("host = \"0.0.0.0\"\nkeys = '{}'\n", folder.path().join("keys").display());
    let mut server = Server::start_in(folder, &(keys + &model("nano-flux")), &[]);
    server.address = server.address.replace("0.0.0.0", "127.0.0.1");
    let key = "authorization: Bearer ann-has-a-long-key";
    server.ask("GET", "/v1/models", &[key, "host: images.example.com"], &[]).expect(200);
    server.ask("GET", "/v1/models", &["host: images.example.com"], &[]).expect(401);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_taken_in() {
    let limits =
        "[limits]\nbody_bytes = \"64KiB\"\nupload_bytes = \"128KiB\"\npixels = 16384\nsteps = 20\nimages = 3\n";
    let server = Server::start(&(model("nano-flux") + limits), &[]);
    let long = json!({"prompt": "x".repeat(70_000)});
    assert_eq!(server.post("/kiln/v1/jobs", &long).expect(413).json()["error"]["code"], "too_large");
    assert_eq!(server.post("/v1/images/generations", &long).expect(413).json()["error"]["code"], "too_large");
    assert!(
        server.post("/sdapi/v1/txt2img", &long).expect(413).json()["detail"].as_str().unwrap().contains("65536 bytes")
    );
    server.ask("POST", "/kiln/v1/loras?name=a", &[], &vec![0; 140_000]).expect(413);
    server.ask("POST", "/kiln/v1/loras?name=a", &[], &vec![0; 130_000]).expect(400);
    // Without a length it is counted as it comes.
    let chunk = format!("{:x}\r\n{}\r\n", 40_000, "x".repeat(40_000));
    let request = format!(
        "POST /kiln/v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    let mut stream = server.connect();
    let mut bytes = Vec::new();
    _ = std::io::Write::write_all(&mut stream, request.as_bytes());
    _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
    crate::support::server::parsed(&bytes).expect(413);
    for (asked, field) in [
        (json!({"prompt": "x", "width": 128, "height": 144}), "pixels"),
        (json!({"prompt": "x", "steps": 21}), "steps"),
        (json!({"prompt": "x", "count": 4}), "count"),
        (json!({"prompt": "x", "count": 0}), "count"),
        (json!({"prompt": "x", "width": 0}), "width"),
        (json!({"prompt": "x", "width": 65}), "width"),
        (json!({"prompt": "x", "width": 18446744073709551615u64}), "width"),
        // Their product is 2^64, which is 0 in 64 bits.
        (json!({"prompt": "x", "width": 1u64 << 60, "height": 16}), "width"),
        (json!({"prompt": "x", "image": base64(&halves(256, 256))}), "image"),
        (json!({"prompt": "x", "image": "AAAA"}), "image"),
        (json!({"prompt": "x", "mask": base64(&halves(64, 64))}), "mask"),
        (json!({"prompt": "x", "guidance": -1.0}), "guidance"),
        (json!({"prompt": "x", "previwes": true}), "previews"),
        (json!({"prompt": 3}), "prompt"),
        (json!({}), "prompt"),
        (json!({"prompt": "x", "model": "none"}), "model"),
        (json!({"prompt": "x", "scheduler": "euler"}), "scheduler"),
    ] {
        let mut asked = asked;
        asked.as_object_mut().unwrap().entry("steps").or_insert(json!(1));
        let error = server.post("/kiln/v1/jobs", &asked).expect(400).json()["error"].clone();
        assert!(error.to_string().contains(field), "{asked}: {error}");
        assert!(error["message"].is_string() && error["code"].is_string() && error["subject"].is_object(), "{error}");
    }
    assert_eq!(server.get("/kiln/v1/jobs").expect(200).json(), json!([]), "none of these became a job");
}
