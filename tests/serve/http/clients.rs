//! Clients in use: the requests of Open WebUI and SillyTavern, in their order, and OpenAI's own client for Python.

use serde_json::{Value, json};

use super::{base64, from_base64, pixels, say};
use crate::support::server::{Server, model};

/// With the keys of Ann and Bob.
fn keyed(tables: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), "ann ann-has-a-long-key\n").unwrap();
    let keys = format!("keys = '{}'\n", folder.path().join("keys").display());
    Server::start_in(folder, &(keys + tables), &[])
}

#[test]
fn open_webui_connects_lists_chooses_and_makes() {
    let server = keyed(&(model("nano-flux") + &model("tiny-sd")));
    // `AUTOMATIC1111_API_AUTH` is a name and a password.
    let key = format!("authorization: Basic {}", base64(b"ann:ann-has-a-long-key"));
    let get = |path: &str| server.ask("GET", path, &[&key], &[]).expect(200).json();
    let post = |path: &str, body: &Value| {
        server.ask("POST", path, &[&key, "content-type: application/json"], body.to_string().as_bytes())
    };
    get("/sdapi/v1/options");
    let models = get("/sdapi/v1/sd-models");
    let listed: Vec<_> = models
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["title"].as_str().unwrap(), model["model_name"].as_str().unwrap()))
        .collect();
    assert_eq!(listed, [("nano-flux", "nano-flux"), ("tiny-sd", "tiny-sd")]);
    // It sends back all options with another model, and asks again.
    let mut options = get("/sdapi/v1/options");
    assert_eq!(options["sd_model_checkpoint"], "nano-flux");
    options["sd_model_checkpoint"] = "tiny-sd".into();
    assert_eq!(post("/sdapi/v1/options", &options).expect(200).json(), json!({"ignored": []}));
    assert_eq!(get("/sdapi/v1/options")["sd_model_checkpoint"], "tiny-sd");
    let asked = json!({"prompt": "a lighthouse", "batch_size": 2, "width": 64, "height": 64, "steps": 3, "negative_prompt": "fog"});
    let answer = post("/sdapi/v1/txt2img", &asked).expect(200).json();
    assert_eq!(answer["images"].as_array().unwrap().len(), 2);
    for image in answer["images"].as_array().unwrap() {
        assert_eq!(pixels(&from_base64(image)).dimensions(), (64, 64));
    }
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!((info["sd_model_name"].as_str(), &info["ignored"]), (Some("tiny-sd"), &json!([])));
    // As OpenAI's API, with its version in the URL.
    let key = "authorization: Bearer ann-has-a-long-key";
    let asked = json!({"model": "nano-flux", "prompt": "sun", "n": 1, "size": "64x64", "response_format": "b64_json", "steps": 2});
    let answer = server.ask(
        "POST",
        "/v1/images/generations?api-version=1",
        &[key, "content-type: application/json"],
        asked.to_string().as_bytes(),
    );
    assert_eq!(pixels(&from_base64(&answer.expect(200).json()["data"][0]["b64_json"])).dimensions(), (64, 64));
    // The URL of an image is fetched with the same key.
    let mut asked = asked;
    asked["response_format"] = Value::Null;
    asked["response_format"] = "url".into();
    let answer = server.ask("POST", "/v1/images/generations", &[key], asked.to_string().as_bytes()).expect(200).json();
    let path = answer["data"][0]["url"].as_str().unwrap().split_once(&server.address).unwrap().1.to_string();
    let image = server.ask("GET", &path, &[key], &[]).expect(200);
    assert_eq!(image.header("content-type"), Some("image/png"));
    server.get(&path).expect(401);
}

#[test]
fn silly_tavern_connects_chooses_makes_and_interrupts() {
    let server = keyed(&(model("nano-flux") + &model("tiny-sd")));
    let key = format!("authorization: Basic {}", base64(b"ann:ann-has-a-long-key"));
    let get = |path: &str| server.ask("GET", path, &[&key], &[]);
    let post = |path: &str, body: &Value| {
        server.ask("POST", path, &[&key, "content-type: application/json"], body.to_string().as_bytes())
    };
    let names = |path: &str| -> Vec<String> {
        let list = get(path).expect(200).json();
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_string()).collect()
    };
    // When it connects.
    let options = get("/sdapi/v1/options").expect(200).json();
    assert!(options.get("forge_preset").is_none(), "it would take this for Forge");
    assert_eq!(
        (names("/sdapi/v1/upscalers"), names("/sdapi/v1/latent-upscale-modes")),
        (vec!["None".to_string()], vec![])
    );
    assert_eq!(get("/sdapi/v1/sd-vae").expect(200).json(), json!([]));
    get("/sdapi/v1/sd-modules").expect(404);
    assert_eq!(names("/sdapi/v1/samplers"), ["Euler"]);
    assert_eq!(get("/sdapi/v1/sd-models").expect(200).json()[1]["title"], "tiny-sd");
    // When a model is chosen, it waits until nothing is at work.
    post("/sdapi/v1/options", &json!({"sd_model_checkpoint": "tiny-sd"})).expect(200);
    let progress = get("/sdapi/v1/progress").expect(200).json();
    assert_eq!((&progress["progress"], &progress["state"]["job_count"]), (&json!(0.0), &json!(0)));
    assert!(names("/sdapi/v1/samplers").contains(&"Euler a".to_string()));
    assert_eq!(names("/sdapi/v1/schedulers"), ["automatic", "karras"]);
    // It sends its own settings along, with the password.
    let asked = json!({
        "url": "http://localhost:7860", "auth": "ann:ann-has-a-long-key", "prompt": "a lighthouse", "negative_prompt": "fog",
        "sampler_name": "Euler a", "scheduler": "automatic", "steps": 3, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": false,
        "enable_hr": false, "hr_upscaler": "None", "hr_scale": 2, "hr_additional_modules": [], "denoising_strength": 0.7,
        "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": true,
        "clip_skip": 1, "save_images": true, "send_images": true, "do_not_save_grid": false, "do_not_save_samples": false,
    });
    let answer = post("/sdapi/v1/txt2img", &asked).expect(200);
    assert!(!String::from_utf8_lossy(&answer.body).contains("long-key"));
    let answer = answer.json();
    assert_eq!(pixels(&from_base64(&answer["images"][0])).dimensions(), (64, 64));
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    let ignored = [
        "auth",
        "clip_skip",
        "denoising_strength",
        "hr_scale",
        "hr_second_pass_steps",
        "hr_upscaler",
        "override_settings.CLIP_stop_at_last_layers",
        "override_settings_restore_afterwards",
        "save_images",
        "url",
    ];
    assert_eq!(info["ignored"], json!(ignored));
    // When its own client is gone, it interrupts and disconnects.
    let mut long = asked;
    long["steps"] = 200.into();
    let stream = server.send("POST", "/sdapi/v1/txt2img", &[&key], long.to_string().as_bytes());
    server.until(|| (get("/sdapi/v1/progress").expect(200).json()["state"]["job_count"] == 1).then_some(()));
    post("/sdapi/v1/interrupt", &json!({})).expect(200);
    drop(stream);
    server.until(|| (get("/sdapi/v1/progress").expect(200).json()["state"]["job_count"] == 0).then_some(()));
    // It is no longer counted as soon as it is cancelled, and ends before its next step.
    let cancelled = || get("/kiln/v1/jobs?status=cancelled").expect(200).json().as_array().unwrap().len();
    server.until(|| (cancelled() > 0).then_some(()));
    assert_eq!(cancelled(), 1);
}

#[test]
fn openais_own_client_generates_edits_and_streams() {
    let Some(python) = std::env::var_os("KILN_TEST_PYTHON") else {
        say("not run: KILN_TEST_PYTHON names no Python with the package `openai`");
        return;
    };
    let server = keyed(&(model("nano-flux") + &model("ip2p")));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/openai_client.py");
    let base = format!("http://{}/v1", server.address);
    let output = std::process::Command::new(python).args([script, &base, "ann-has-a-long-key"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("all of it works"), "{said}");
}
