//! Each dialect from a request to an image.

use std::io::{Read, Write};

use burn::tensor::{Shape, TensorData};
use serde_json::{Value, json};

use super::{base64, distance, from_base64, halves, pixels, png, say};
use crate::support::{
    program::succeeds,
    server::{Server, events, model, parsed},
};

fn apple() -> Value {
    json!({"prompt": "red apple", "negative_prompt": "", "true_guidance": 3.0, "seed": 7, "steps": 4, "width": 64, "height": 64})
}

/// The output of `kiln generate` for [`apple`].
fn generated() -> image::RgbImage {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("images");
    let (out, _) = succeeds(&[
        "generate",
        "--model",
        "checkpoints/nano-flux",
        "--prompt",
        "red apple",
        "--negative-prompt",
        "",
        "--true-guidance",
        "3",
        "--seed",
        "7",
        "--steps",
        "4",
        "--width",
        "64",
        "--height",
        "64",
        "--output",
        output.to_str().unwrap(),
    ]);
    pixels(&std::fs::read(out.trim()).unwrap())
}

#[test]
fn a_job_is_followed_event_by_event_and_its_image_is_that_of_generate() {
    let server = Server::start(&(model("nano-flux") + "[limits]\nrows = 1\n"), &[]);
    let mut asked = apple();
    asked["previews"] = true.into();
    // It waits until somebody listens.
    let mut before = apple();
    before["steps"] = 100.into();
    let before = server.submit(&before);
    let accepted = server.post("/kiln/v1/jobs", &asked).expect(202);
    let id = accepted.json()["id"].as_str().unwrap().to_string();
    assert_eq!(accepted.header("location"), Some(format!("/kiln/v1/jobs/{id}").as_str()));

    let path = format!("/kiln/v1/jobs/{id}/events");
    let mut stream = server.send("GET", &path, &[], &[]);
    let mut heard = vec![0; 4096];
    let count = stream.read(&mut heard).unwrap();
    heard.truncate(count);
    server.ask("DELETE", &format!("/kiln/v1/jobs/{before}"), &[], &[]).expect(200);
    stream.read_to_end(&mut heard).unwrap();
    let followed = parsed(&heard).expect(200);
    assert_eq!(followed.header("content-type"), Some("text/event-stream"));
    let all = events(&followed.body);
    let names: Vec<_> = all.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "completed").count(), 1, "{names:?}");
    assert!(
        names[0] == "queued" && names.contains(&"started") && names.contains(&"progress") && names.contains(&"preview"),
        "{names:?}"
    );
    assert!(all.windows(2).all(|two| two[0].0 < two[1].0), "{all:?}");
    let last_progress = all.iter().rfind(|(_, name, _)| name == "progress").unwrap();
    assert_eq!((&last_progress.2["step"], &last_progress.2["of"]), (&json!(4), &json!(4)));
    let preview = all.iter().find(|(_, name, _)| name == "preview").unwrap();
    assert!(pixels(&from_base64(&preview.2["png"])).width() > 1);

    // Resumes after a number, given either way, without repeats.
    let end = all.last().unwrap();
    assert_eq!(end.1, "completed");
    for answer in [
        server.ask("GET", &path, &[&format!("last-event-id: {}", end.0 - 1)], &[]),
        server.get(&format!("{path}?after={}", end.0 - 1)),
    ] {
        assert_eq!(events(&answer.expect(200).body), std::slice::from_ref(end));
    }
    assert_eq!(events(&server.get(&format!("{path}?after={}", end.0)).expect(200).body), []);

    let job = server.get(&format!("/kiln/v1/jobs/{id}")).expect(200).json();
    assert_eq!(
        (job["status"].as_str(), &job["step"], &job["attempts"]),
        (Some("completed"), &json!(4), &json!(1)),
        "{job}"
    );
    assert_eq!(job["request"]["model"], "nano-flux");
    let url = job["images"][0]["url"].as_str().unwrap();
    assert_eq!(end.2["images"][0]["url"], url);
    let image = server.get(url).expect(200);
    assert_eq!(image.header("content-type"), Some("image/png"));
    let image = pixels(&image.body);
    assert_eq!(image, generated(), "the server and the command make the same image");
    assert_eq!(pixels(&server.get(&format!("{url}?format=webp")).expect(200).body), image);
    let jpeg = server.get(&format!("{url}?format=jpeg&quality=95")).expect(200);
    assert_eq!(jpeg.header("content-type"), Some("image/jpeg"));
    assert!(distance(&pixels(&jpeg.body), &image) < 6.0);

    let listed = server.get("/kiln/v1/jobs?limit=1&status=completed").expect(200).json();
    assert_eq!(listed[0]["id"], id.as_str());
    assert_eq!(server.get("/kiln/v1/jobs?status=failed").expect(200).json(), json!([]));
    let refused = server.ask("DELETE", &format!("/kiln/v1/jobs/{id}"), &[], &[]).expect(409).json();
    assert_eq!(refused["error"]["code"], "finished");
}

#[test]
fn one_stream_tells_of_all_jobs_and_an_idempotency_key_makes_one_job_of_two_requests() {
    let server = Server::start(&model("nano-flux"), &[]);
    let mut stream = server.send("GET", "/kiln/v1/events", &[], &[]);
    let body = json!({"prompt": "key", "steps": 1, "seed": 1, "width": 64, "height": 64}).to_string();
    let ask = |body: &str| server.ask("POST", "/kiln/v1/jobs", &["idempotency-key: one"], body.as_bytes());
    let ids: Vec<_> = (0..2).map(|_| ask(&body).expect(202).json()["id"].clone()).collect();
    assert_eq!(ids[0], ids[1]);
    ask(&body.replace("key\"", "sun\"")).expect(422);
    let mut heard = Vec::new();
    server.until(|| {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        heard.extend_from_slice(&bytes[..count]);
        let all = events(&parsed(&heard).body);
        all.iter().any(|(_, name, data)| name == "completed" && data["job"] == ids[0]).then_some(())
    });
}

#[test]
fn openais_dialect_makes_sends_and_refuses_as_openais_clients_expect() {
    let server = Server::start(&model("nano-flux"), &[]);
    let mut asked =
        json!({"model": "nano-flux", "prompt": "red apple", "n": 2, "size": "64x64", "response_format": "b64_json"});
    for (name, value) in
        [("seed", json!(7)), ("steps", json!(4)), ("negative_prompt", json!("")), ("true_guidance", json!(3.0))]
    {
        asked[name] = value;
    }
    let answer = server.post("/v1/images/generations", &asked).expect(200).json();
    let images: Vec<_> =
        answer["data"].as_array().unwrap().iter().map(|image| pixels(&from_base64(&image["b64_json"]))).collect();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0], generated(), "the same image whatever else is made beside it");
    assert!(distance(&images[0], &images[1]) > 5.0, "another seed is another image");
    assert_eq!((answer["size"].as_str(), answer["output_format"].as_str()), (Some("64x64"), Some("png")));
    assert_eq!((&answer["data"][0]["seed"], &answer["data"][1]["seed"]), (&json!(7), &json!(8)));

    asked["response_format"] = "url".into();
    asked["n"] = 1.into();
    asked["output_format"] = "webp".into();
    let answer = server.post("/v1/images/generations", &asked).expect(200).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    let path = url.strip_prefix(&format!("http://{}", server.address)).unwrap();
    assert_eq!(pixels(&server.get(path).expect(200).body), images[0]);

    asked["response_format"] = Value::Null;
    asked["stream"] = true.into();
    asked["partial_images"] = 2.into();
    let streamed = events(&server.post("/v1/images/generations", &asked).expect(200).body);
    let names: Vec<_> = streamed.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"]
    );
    for (number, (_, name, data)) in streamed.iter().enumerate() {
        assert_eq!(data["type"], name.as_str());
        assert_eq!(pixels(&from_base64(&data["b64_json"])).dimensions(), (64, 64));
        if number < 2 {
            assert_eq!(data["partial_image_index"], number);
        }
    }
    assert_eq!(pixels(&from_base64(&streamed[2].2["b64_json"])), images[0]);

    let models = server.get("/v1/models").expect(200).json();
    assert_eq!((models["object"].as_str(), models["data"][0]["id"].as_str()), (Some("list"), Some("nano-flux")));
    for (change, status, parameter, code) in [
        (json!({"step": 3}), 400, "step", "unknown_parameter"),
        (json!({"steps": "many"}), 400, "steps", "invalid"),
        (json!({"model": "dall-e-3"}), 404, "model", "model_not_found"),
        (json!({"size": "64"}), 400, "size", "invalid"),
        (json!({"n": 11}), 400, "n", "invalid"),
        (json!({"quality": "hd"}), 400, "quality", "invalid"),
        (json!({"style": "vivid"}), 400, "style", "unknown_parameter"),
        (json!({"prompt": null}), 400, "prompt", "invalid"),
        (json!({"size": "64x70"}), 400, "height", "invalid"),
        (json!({"lora": [{"name": "nobody"}]}), 400, "loras.name", "invalid"),
    ] {
        let mut asked = json!({"prompt": "sun"});
        asked.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let error = server.post("/v1/images/generations", &asked).expect(status).json()["error"].clone();
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some(parameter), Some(code)), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert_eq!(server.get("/v1/chat/completions").expect(404).json()["error"]["code"], "not_found");
}

#[test]
fn an_image_is_edited_by_a_model_that_edits_and_changed_by_one_that_does_not() {
    let server = Server::start(&(model("nano-flux") + &model("ip2p")), &[]);
    let original = halves(64, 64);
    // Without a model, the one that edits is used.
    let form = [
        ("prompt", None, &b"make it green"[..]),
        ("image", Some("a.png"), &original),
        ("steps", None, b"2"),
        ("seed", None, b"1"),
    ];
    let edited = server.form("/v1/images/edits", &form).expect(200).json();
    let job = server.get(&format!("/kiln/v1/jobs/{}", edited["job"].as_str().unwrap())).expect(200).json();
    assert_eq!((job["request"]["model"].as_str(), &job["has_image"]), (Some("ip2p"), &json!(true)));
    assert!(job["request"].get("image").is_none(), "the bytes of images are not repeated: {job}");
    let image = pixels(&from_base64(&edited["data"][0]["b64_json"]));
    let again = server.post(
        "/kiln/v1/jobs",
        &json!({
            "model": "ip2p", "prompt": "make it green", "image": base64(&original), "steps": 2, "seed": 1,
        }),
    );
    let again = server.finished(again.expect(202).json()["id"].as_str().unwrap());
    let url = again["images"][0]["url"].as_str().unwrap_or_else(|| panic!("{again}"));
    assert_eq!(pixels(&server.get(url).expect(200).body), image, "the same edit in both dialects");

    // A mask that is transparent on the left: the right half stays as the autoencoder reconstructs it.
    let mask = image::RgbaImage::from_fn(64, 64, |x, _| image::Rgba([0, 0, 0, if x < 32 { 0 } else { 255 }]));
    let mask = png(mask);
    let form = [
        ("model", None, &b"nano-flux"[..]),
        ("prompt", None, b"tree"),
        ("image[]", Some("a.png"), &original),
        ("mask", Some("m.png"), &mask),
        ("steps", None, b"4"),
        ("strength", None, b"1"),
        ("seed", None, b"3"),
        ("size", None, b"64x64"),
    ];
    let painted = server.form("/v1/images/edits", &form).expect(200).json();
    let painted = pixels(&from_base64(&painted["data"][0]["b64_json"]));
    let half = |image: &image::RgbImage, left: u32| image::imageops::crop_imm(image, left, 0, 24, 64).to_image();
    let original = pixels(&original);
    let (kept, changed) =
        (distance(&half(&painted, 40), &half(&original, 40)), distance(&half(&painted, 0), &half(&original, 0)));
    assert!(changed > 2.0 * kept, "kept within {kept}, changed by {changed}");

    for (parts, parameter) in [
        (vec![("prompt", None, &b"x"[..])], "image"),
        (vec![("prompt", None, &b"x"[..]), ("image", Some("a.png"), b"GIF89a")], "image"),
        (
            vec![("prompt", None, &b"x"[..]), ("image", Some("a.png"), &mask), ("markup", Some("a.png"), &mask)],
            "markup",
        ),
        (vec![("prompt", None, &b"x"[..]), ("image", Some("a.png"), &mask), ("image", Some("a.png"), &mask)], "image"),
    ] {
        let error = server.form("/v1/images/edits", &parts).expect(400).json()["error"].clone();
        assert_eq!(error["param"], parameter, "{error}");
    }
}

#[test]
fn automatic1111s_dialect_changes_an_image_and_lists_what_it_ignores() {
    let server = Server::start(&(model("tiny-sd") + &model("nano-flux")), &[]);
    let asked = json!({
        "prompt": "a house", "init_images": [format!("data:image/png;base64,{}", base64(&halves(64, 64)))], "denoising_strength": 0.5,
        "steps": 4, "seed": 5, "width": 64, "height": 64, "cfg_scale": 5, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
        "batch_size": 2, "restore_faces": true, "tiling": false, "alwayson_scripts": {"x": {"args": []}}, "mask_blur": 4,
        "override_settings": {"sd_model_checkpoint": "tiny-sd", "CLIP_stop_at_last_layers": 2},
    });
    let answer = server.post("/sdapi/v1/img2img", &asked).expect(200).json();
    let images = answer["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(pixels(&from_base64(&images[0])).dimensions(), (64, 64));
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!(
        info["ignored"],
        json!(["alwayson_scripts", "mask_blur", "override_settings.CLIP_stop_at_last_layers", "restore_faces"])
    );
    assert_eq!((&info["all_seeds"], info["sampler_name"].as_str()), (&json!([5, 6]), Some("DPM++ 2M Karras")));
    let text = info["infotexts"][0].as_str().unwrap();
    assert!(
        text.starts_with("a house\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 5, Size: 64x64"),
        "{text}"
    );
    assert_eq!(
        server.post("/sdapi/v1/img2img", &asked).expect(200).json()["images"],
        answer["images"],
        "the same seed"
    );

    for (change, status, said) in [
        (json!({"init_images": ["http://169.254.169.254/latest"]}), 400, "does not fetch URLs"),
        (json!({"init_images": []}), 400, "must be one image"),
        (json!({"sampler_name": "Restart"}), 404, "`sampler_name`"),
        (json!({"override_settings": {"sd_model_checkpoint": "other"}}), 404, "`sd_model_checkpoint`"),
        (json!({"prompt": "<lora:nobody:1> x"}), 400, "nobody"),
        (json!({"steps": -1}), 400, "`steps`"),
    ] {
        let mut asked = asked.clone();
        asked.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let detail =
            server.post("/sdapi/v1/img2img", &asked).expect(status).json()["detail"].as_str().unwrap().to_string();
        assert!(detail.contains(said), "{detail}");
    }
}

/// A LoRA for the nano FLUX that changes much: random matrices of rank 4 in its attention.
fn lora() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut state = 1u32;
    let mut matrix = |rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 0.6 - 0.3
        });
        TensorData::new(values.collect::<Vec<_>>(), Shape::new([rows, columns]))
    };
    let mut tensors = std::collections::BTreeMap::new();
    for part in ["to_q", "to_k", "to_v"] {
        let layer = format!("transformer.transformer_blocks.0.attn.{part}");
        tensors.insert(format!("{layer}.lora_A.weight"), matrix(4, 160));
        tensors.insert(format!("{layer}.lora_B.weight"), matrix(160, 4));
    }
    kiln::weights::write_tensors(file.path(), &tensors, &std::collections::BTreeMap::new()).unwrap();
    std::fs::read(file.path()).unwrap()
}

#[test]
fn an_uploaded_adapter_works_in_every_dialect() {
    let server = Server::start(&model("nano-flux"), &[]);
    let bytes = lora();
    let sent = server.ask("POST", "/kiln/v1/loras?name=ink", &[], &bytes).expect(201).json();
    assert_eq!(
        (sent["name"].as_str(), &sent["rank"], &sent["fits"]),
        (Some("ink"), &json!(4), &json!(["nano-flux"])),
        "{sent}"
    );
    assert_eq!(server.get("/kiln/v1/loras").expect(200).json()[0]["name"], "ink");

    let mut asked = apple();
    asked["loras"] = json!([{"name": "ink", "scale": 0.5}]);
    let job = server.finished(&server.submit(&asked));
    let worn = pixels(&server.get(job["images"][0]["url"].as_str().unwrap()).expect(200).body);
    assert!(distance(&worn, &generated()) > 1.0, "the adapter changes the image");

    let mut openai = json!({"prompt": "red apple", "size": "64x64", "lora": [{"name": "ink", "scale": 0.5}]});
    for name in ["seed", "steps", "negative_prompt", "true_guidance"] {
        openai[name] = asked[name].clone();
    }
    let answer = server.post("/v1/images/generations", &openai).expect(200).json();
    assert_eq!(pixels(&from_base64(&answer["data"][0]["b64_json"])), worn);
    let automatic = json!({
        "prompt": "red apple <lora:ink:0.5>", "seed": 7, "steps": 4, "width": 64, "height": 64, "cfg_scale": 3.0, "distilled_cfg_scale": 3.5,
    });
    let answer = server.post("/sdapi/v1/txt2img", &automatic).expect(200).json();
    assert_eq!(pixels(&from_base64(&answer["images"][0])), worn);
    assert_eq!(server.get("/sdapi/v1/loras").expect(200).json()[0]["name"], "ink");

    server.ask("DELETE", "/kiln/v1/loras/ink", &[], &[]).expect(204);
    server.ask("DELETE", "/kiln/v1/loras/ink", &[], &[]).expect(404);
    assert_eq!(server.get("/kiln/v1/loras").expect(200).json(), json!([]));
}

#[test]
fn a_first_answer_comes_soon_and_the_server_says_what_it_does() {
    let server = Server::start(&model("nano-flux"), &[]);
    let began = std::time::Instant::now();
    let asked = json!({"prompt": "hippopotamus", "size": "64x64", "steps": 4});
    server.post("/v1/images/generations", &asked).expect(200);
    // Two seconds are the aim, measured on an idle machine; tests run beside each other.
    let (ready, first) = (server.ready_after, began.elapsed());
    say(format!("listens after {ready:?}, first image after {first:?} more"));
    assert!((ready + first).as_secs_f64() < 20.0, "{ready:?} + {first:?}");
    assert_eq!(server.get("/healthz").expect(200).body, b"ok\n");
    server.get("/readyz").expect(200);
    let models = server.get("/kiln/v1/models").expect(200).json();
    assert_eq!((&models[0]["loaded"], models[0]["family"].as_str()), (&json!(true), Some("FLUX.1")), "{models}");
    let status = server.get("/kiln/v1/status").expect(200).json();
    assert_eq!((status["device"].as_str(), &status["queue"]["limit"]), (Some("cpu"), &json!(64)), "{status}");
    server.ask("POST", "/kiln/v1/models/nano-flux/unload", &[], &[]).expect(200);
    assert_eq!(server.get("/kiln/v1/models").expect(200).json()[0]["loaded"], false);
    server.ask("POST", "/kiln/v1/models/nano-flux/load", &[], &[]).expect(200);
    server.ask("POST", "/kiln/v1/models/other/load", &[], &[]).expect(404);
    let metrics = String::from_utf8(server.get("/metrics").expect(200).body).unwrap();
    let counted = "kiln_http_requests_total{method=\"POST\",route=\"/v1/images/generations\",status=\"200\"} 1";
    assert!(
        metrics.contains(counted) && metrics.ends_with("# EOF\n") && metrics.matches("# EOF").count() == 1,
        "{metrics}"
    );
    assert!(!metrics.contains("hippo") && !server.log().contains("hippo"), "prompts are nowhere");
}

#[test]
fn the_description_is_openapi_and_names_only_what_there_is() {
    let server = Server::start(&model("nano-flux"), &[]);
    let description = server.get("/openapi.json").expect(200).json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3."), "{}", description["openapi"]);
    let paths = description["paths"].as_object().unwrap();
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
            assert!(names.insert(name.to_string()), "{name} is there twice");
            assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
            // Every described route exists; this one stream would never end.
            if path != "/kiln/v1/events" {
                let answer = server.ask(&method.to_uppercase(), &path.replace(['{', '}'], ""), &[], b"{");
                assert_ne!(answer.status, 405, "{method} {path}: {answer}");
            }
        }
    }
    for path in ["/kiln/v1/jobs/{id}/events", "/v1/images/edits", "/sdapi/v1/txt2img", "/metrics"] {
        assert!(paths.contains_key(path), "{path}");
    }
    // Every parameter that is described is one that is read: only the size is refused here.
    for (schema, path) in [("Generation", "/v1/images/generations"), ("JobRequest", "/kiln/v1/jobs")] {
        for name in description["components"]["schemas"][schema]["properties"].as_object().unwrap().keys() {
            let mut asked = json!({"size": "65x65", "width": 65, "height": 65});
            asked.as_object_mut().unwrap().retain(|name, _| (name == "size") == (schema == "Generation"));
            asked.as_object_mut().unwrap().entry(name).or_insert(Value::Null);
            asked["prompt"] = "sun".into();
            let error = server.post(path, &asked).expect(400).json()["error"].clone();
            assert_ne!(error["code"], "unknown_parameter", "{name}: {error}");
        }
    }
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(description.pointer(&format!("/{reference}")).is_some(), "{reference} is nowhere");
    }
    if let Some(file) = std::env::var_os("KILN_OPENAPI") {
        std::fs::File::create(file).unwrap().write_all(text.as_bytes()).unwrap();
    }
}
