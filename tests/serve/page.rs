//! The requests of the page of `kiln serve`: its own files, runs, datasets, pairs and votes.
#![cfg(unix)]

mod browser;
mod captions;
mod starting;
mod voting;
mod watching;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use serde_json::Value;

use crate::support::{
    program::{succeeds, workshop},
    server::{Server, model},
};

/// A malicious caption.
const EVIL: &str = "<img src=x onerror=\"window.harmed=1\"><script>window.harmed=1</script>";

/// A folder of images whose captions are changed, so that each test has its own.
fn dataset(folder: &Path, name: &str, count: usize) -> PathBuf {
    let set = folder.join(name);
    fs::create_dir_all(set.join("more")).unwrap();
    let mut icons: Vec<PathBuf> = fs::read_dir("datasets/icons").unwrap().map(|entry| entry.unwrap().path()).collect();
    icons.retain(|path| path.extension().is_some_and(|kind| kind == "png"));
    icons.sort();
    for number in 0..count {
        let icon = &icons[number % icons.len()];
        let name = icon.file_stem().unwrap().to_str().unwrap();
        let to = if number == 1 { set.join(format!("more/{name}")) } else { set.join(format!("{name}-{number:04}")) };
        fs::copy(icon, to.with_extension("png")).unwrap();
        fs::write(to.with_extension("txt"), format!("{name}, blue ink")).unwrap();
    }
    set
}

/// A folder with one finished run of the quickstart, made once.
static RUNS: LazyLock<PathBuf> = LazyLock::new(|| {
    let workshop = workshop("serve_page");
    let settings = [
        format!("run.output='{}'", workshop.join("runs").display()),
        format!("data.cache='{}'", workshop.join("cache").display()),
        "training.max_steps=4".into(),
        "training.log_every=1".into(),
        "checkpoint.every=2".into(),
        "validation.every=2".into(),
        "validation.steps=2".into(),
    ];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = ["train", "--config", "configs/quickstart.toml"].into_iter().chain(settings).collect();
    succeeds(&arguments);
    workshop.join("runs")
});

/// A server of the nano model, whose page shows these folders.
fn serve(runs: &[&Path], datasets: &[&Path]) -> Server {
    serve_with(runs, datasets, "")
}

/// The same with more lines of `[page]`.
fn serve_with(runs: &[&Path], datasets: &[&Path], more: &str) -> Server {
    let list = |folders: &[&Path]| {
        let quoted: Vec<_> = folders.iter().map(|folder| format!("'{}'", folder.display())).collect();
        quoted.join(", ")
    };
    let page = format!("[page]\nruns = [{}]\ndatasets = [{}]\n{more}", list(runs), list(datasets));
    Server::start(&(model("nano-flux") + &page), &[])
}

/// The response of a path below `/kiln/v1`.
#[track_caller]
fn get(server: &Server, path: &str) -> Value {
    server.ask("GET", &format!("/kiln/v1{path}"), &[], &[]).expect(200).json()
}

#[test]
fn the_page_is_whole_and_lets_nothing_in_from_elsewhere() {
    let server = serve(&[], &[]);
    let index = server.ask("GET", "/", &[], &[]).expect(200);
    let policy = index.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
    let html = String::from_utf8(index.body).unwrap();
    // It has no inline script or style, and loads nothing from another server.
    assert!(!html.contains("<style") && !html.contains("://") && !html.contains("style="), "{html}");
    let files: Vec<&str> = html.split(['"']).filter(|part| part.starts_with('/') && part.contains('.')).collect();
    assert!(files.len() >= 3, "{html}");
    for script in html.split("<script").skip(1) {
        assert!(script.split('>').next().unwrap().contains("src="), "{script}");
    }
    let mut bytes = html.len();
    for file in files.iter().filter(|file| !file.contains("openapi")) {
        let answer = server.ask("GET", file, &[], &[]).expect(200);
        let tag = answer.header("etag").unwrap().to_string();
        assert!(answer.header("content-security-policy").is_some());
        let again = server.ask("GET", file, &[&format!("if-none-match: {tag}")], &[]).expect(304);
        assert!(again.body.is_empty());
        bytes += answer.body.len();
    }
    assert!(bytes < 200_000, "{bytes} bytes before compression");
    for path in ["/../Cargo.toml", "/%2e%2e/Cargo.toml", "/dist/kiln.js", "/kiln.js/", "/index.html/..", "/none.js"] {
        assert_eq!(server.ask("GET", path, &[], &[]).status, 404, "{path}");
    }
}
