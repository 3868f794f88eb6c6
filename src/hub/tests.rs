//! Finding models, with a cache and a hub of the test's own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of a small model: one component in shards, one not, one that kiln has no use for.
const FILES: [(&str, &str); 11] = [
    (
        INDEX,
        r#"{"_class_name": "P", "safety_checker": [null, null], "scheduler": ["d", "S"], "tokenizer": ["t", "T"],
        "transformer": ["d", "M"], "vae": ["d", "A"]}"#,
    ),
    ("scheduler/scheduler_config.json", "{}"),
    ("tokenizer/tokenizer_config.json", "{}"),
    ("tokenizer/vocab.json", "{}"),
    ("tokenizer/merges.txt", "#version"),
    ("transformer/config.json", "{}"),
    (
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        r#"{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}"#,
    ),
    ("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "one"),
    ("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", "two"),
    ("vae/config.json", "{}"),
    ("vae/diffusion_pytorch_model.safetensors", "vae"),
];

fn source(cache: &Path) -> Source {
    Source { cache: Cache::new(cache.into()), endpoint: None, token: None, online: false }
}

/// Puts files of `org/name` into a cache as the hub's own tools lay it out; returns the snapshot.
fn fill(cache: &Path, leave_out: &str) -> PathBuf {
    let repository = cache.join("models--org--name");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    let snapshot = repository.join("snapshots").join(COMMIT);
    for (name, content) in FILES.iter().filter(|(name, _)| *name != leave_out) {
        let path = snapshot.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    snapshot
}

#[test]
fn a_folder_is_itself_if_it_holds_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let error = resolve(name).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains(INDEX) && error.contains("hint"), "{error}");
    fs::write(folder.path().join(INDEX), "{}").unwrap();
    assert_eq!(resolve(name).unwrap(), folder.path());
}

#[test]
fn what_is_neither_folder_nor_name_is_not_looked_up() {
    for model in ["", "no-slash", "./models/flux", "/nowhere/at/all", "../up", "a/b/c", "org/", "org/na me"] {
        let error = resolve(model).unwrap_err().to_string();
        assert!(error.contains("no such folder"), "{model}: {error}");
    }
}

#[test]
fn the_environment_says_where_and_whether_to_look() {
    let source = |variables: &[(&str, &str)], home: Option<&str>| {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        Source::new(variable, home.map(PathBuf::from))
    };
    let cache = |variables: &[_], home| source(variables, home).unwrap().cache.path().clone();
    assert_eq!(cache(&[("HF_HOME", "/models")], None), Path::new("/models/hub"));
    assert_eq!(cache(&[("HF_HOME", "")], Some("/home/me")), Path::new("/home/me/.cache/huggingface/hub"));
    let all = [("HF_HUB_CACHE", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HOME", "/c"), ("XDG_CACHE_HOME", "/d")];
    let found: Vec<_> = (0..=4).map(|skip| cache(&all[skip..], Some("/home/me"))).collect();
    let expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub", "/home/me/.cache/huggingface/hub"];
    assert_eq!(found, expected.map(PathBuf::from));
    assert_eq!(cache(&[("HF_HOME", "~/hf")], Some("/home/me")), Path::new("/home/me/hf/hub"));
    let scratch = [("HF_HUB_CACHE", "$SCRATCH/${USER}_hub/$NONE"), ("SCRATCH", "/scratch"), ("USER", "me")];
    assert_eq!(cache(&scratch, None), Path::new("/scratch/me_hub/$NONE"));
    for home in [None, Some("")] {
        let error = source(&[], home).err().expect("no home").to_string();
        assert!(error.contains("hint: set HF_HOME"), "{error}");
    }
    let online = |value| source(&[("HF_HUB_OFFLINE", value)], Some("/home/me")).unwrap().online;
    assert!(["1", "on", "YES", "True"].into_iter().all(|value| !online(value)));
    assert!(["", "0", "off", "no", "false"].into_iter().all(online));
    let online = |variables: &[_]| source(variables, Some("/home/me")).unwrap().online;
    assert!(!online(&[("TRANSFORMERS_OFFLINE", "1")]));
    assert!(online(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]), "the hub's own variable decides");
    let endpoint = source(&[("HF_ENDPOINT", "https://mirror.example/")], Some("/home/me")).unwrap().endpoint;
    assert_eq!(endpoint.as_deref(), Some("https://mirror.example"));
}

#[test]
fn the_token_is_that_of_the_environment_or_of_a_login() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap().to_string();
    let token = |variables: &[(&str, &str)]| {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        let own = |name: &str| (name == "HF_HOME").then(|| folder.clone());
        Source::new(|name: &str| variable(name).or_else(|| own(name)), None).unwrap().token
    };
    assert_eq!(token(&[]), None);
    fs::write(home.path().join("token"), "hf_stored\n").unwrap();
    assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
    // Wherever the cache is: a login stores it beside the default one.
    assert_eq!(token(&[("HF_HUB_CACHE", "/elsewhere")]).as_deref(), Some("hf_stored"));
    assert_eq!(token(&[("HF_TOKEN", " hf_given\n")]).as_deref(), Some("hf_given"));
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).as_deref(), Some("hf_old"));
    assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    fs::write(home.path().join("other"), "hf_other").unwrap();
    assert_eq!(token(&[("HF_TOKEN_PATH", home.path().join("other").to_str().unwrap())]).as_deref(), Some("hf_other"));
}

#[test]
fn a_whole_cached_model_needs_no_network() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fill(cache.path(), "");
    assert_eq!(source(cache.path()).resolve("org/name").unwrap(), snapshot);
}

#[test]
fn a_missing_model_is_one_error_with_repository_cache_and_next_move() {
    let cache = tempfile::tempdir().unwrap();
    let error = source(cache.path()).resolve("org/name").unwrap_err().to_string();
    for part in ["`org/name`", cache.path().to_str().unwrap(), "hf download org/name", "HF_TOKEN"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_half_cached_model_names_the_parts_it_lacks() {
    for (file, _) in &FILES[1..] {
        let cache = tempfile::tempdir().unwrap();
        fill(cache.path(), file);
        let error = source(cache.path()).resolve("org/name").unwrap_err().to_string();
        let component = file.split_once('/').unwrap().0;
        assert!(error.contains(&format!("{component}/ of the model")), "{file}: {error}");
    }
}

#[test]
fn only_files_that_are_read_are_fetched() {
    let others = [
        "README.md",
        "flux1-dev.safetensors",
        "dev_grid.jpg",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/pytorch_model.bin.index.json",
        "text_encoder/flax_model.msgpack",
        "safety_checker/model.safetensors",
        "transformer/deeper/config.json",
    ];
    let names: Vec<String> = FILES.iter().map(|(name, _)| *name).chain(others).map(String::from).collect();
    let mut expected: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    // This part has nothing else.
    expected.extend([
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
    ]);
    assert_eq!(wanted(&names), expected);
}

/// Answers as the hub does, for the few requests of this test.
fn serve(listener: TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::result::Result::ok);
        let Some(request) = lines.next() else { continue };
        let range = lines.by_ref().take_while(|line| !line.is_empty());
        let one_byte = range.filter(|line| line.ends_with("bytes=0-0")).count() > 0;
        let path = request.split(' ').nth(1).unwrap();
        let names = FILES.iter().map(|(name, _)| *name).chain(["vae/diffusion_pytorch_model.fp16.safetensors"]);
        let names: Vec<String> = names.map(|name| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
        let info = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(","));
        let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        let body = match file {
            Some(file) => FILES.iter().find(|(name, _)| *name == file).map(|(_, content)| *content),
            None => path.starts_with("/api/models/org/name").then_some(info.as_str()),
        };
        let (status, body) = body.map_or(("404 Not Found", ""), |body| ("200 OK", body));
        let sent = if one_byte { &body[..1.min(body.len())] } else { body };
        let etag = format!("etag-{}", path.replace('/', "-"));
        let head = format!(
            "HTTP/1.1 {status}\r\nx-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\ncontent-range: bytes 0-0/{}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len(),
            sent.len()
        );
        stream.write_all(format!("{head}{sent}").as_bytes()).unwrap();
    }
}

#[test]
fn what_the_cache_lacks_is_fetched_into_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(|| serve(listener));
    let cache = tempfile::tempdir().unwrap();
    let online = Source { endpoint: Some(endpoint), online: true, ..source(cache.path()) };
    let snapshot = online.resolve("org/name").unwrap();
    for (name, content) in FILES {
        assert_eq!(fs::read_to_string(snapshot.join(name)).unwrap(), content, "{name}");
    }
    assert!(!snapshot.join("vae/diffusion_pytorch_model.fp16.safetensors").exists());
    assert_eq!(source(cache.path()).resolve("org/name").unwrap(), snapshot, "without a network from now on");
}

#[test]
fn an_unreachable_hub_is_the_same_error() {
    let cache = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let unreachable = Source { endpoint: Some(endpoint), online: true, ..source(cache.path()) };
    let error = unreachable.resolve("org/name").unwrap_err().to_string();
    assert!(error.contains("`org/name`") && error.contains("downloading failed"), "{error}");
}

#[test]
fn the_address_of_a_models_page_is_its_name() {
    for address in
        ["https://huggingface.co/org/name", "https://huggingface.co/org/name/tree/main", "https://hf.co/org/name/"]
    {
        assert_eq!(page(address), Some("org/name"), "{address}");
    }
    assert_eq!(page("https://example.org/org/name"), None);
    assert_eq!(page("https://huggingface.co/org"), None);
}

#[test]
fn half_precision_variants_are_weights_and_pickles_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    copy(&model, folder.path());
    for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        copy(&model.join(part), &folder.path().join(part));
    }
    let unet = folder.path().join("unet");
    let plain = unet.join("diffusion_pytorch_model.safetensors");
    std::fs::rename(&plain, unet.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert_eq!(resolve(folder.path().to_str().unwrap()).unwrap(), folder.path());
    std::fs::rename(unet.join("diffusion_pytorch_model.fp16.safetensors"), unet.join("diffusion_pytorch_model.bin"))
        .unwrap();
    let error = resolve(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("unet/ (it has diffusion_pytorch_model.bin, a PyTorch pickle"), "{error}");
}
