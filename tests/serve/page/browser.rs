//! The page in a real browser, through every view.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use super::{EVIL, RUNS, Server, dataset, serve, serve_with, starting::config};
use crate::support::program::copy;

/// Set `KILN_TEST_BROWSER` to a Chromium to run this; it needs Node and the packages of `tests/serve/browser`.
#[test]
fn every_view_works_in_a_browser() {
    let Some(browser) = std::env::var_os("KILN_TEST_BROWSER") else { return };
    let folder = tempfile::tempdir().unwrap();
    // A run that the test goes on writing, a dataset with a harmful caption, and a large one.
    copy(&*RUNS, folder.path().join("runs"));
    let set = dataset(folder.path(), "drawings", 12);
    let harmful = fs::read_dir(&set).unwrap().map(|entry| entry.unwrap().path());
    let harmful = harmful.filter(|path| path.extension().is_some_and(|kind| kind == "txt")).max().unwrap();
    fs::write(&harmful, EVIL).unwrap();
    let large = dataset(folder.path(), "many", 2000);
    fs::create_dir(folder.path().join("configs")).unwrap();
    fs::write(folder.path().join("configs/long.toml"), config(folder.path(), 100_000, |_| ())).unwrap();
    let more = format!("configs = ['{}']\npasted_configs = true\n", folder.path().join("configs").display());
    let datasets: [&Path; 3] = [&set, &large, Path::new("tests/fixtures/picture-edits")];
    let server = serve_with(&[&folder.path().join("runs")], &datasets, &more);
    run(&browser, "views.mjs", &server, folder.path());
}

/// A hundred reloads at any moment, while captions are typed and images are made: nothing is lost. As above.
#[test]
fn a_hundred_reloads_lose_nothing() {
    let Some(browser) = std::env::var_os("KILN_TEST_BROWSER") else { return };
    let folder = tempfile::tempdir().unwrap();
    let set = dataset(folder.path(), "drawings", 12);
    let server = serve(&[], &[&set]);
    run(&browser, "reloads.mjs", &server, folder.path());
}

fn run(browser: &OsStr, script: &str, server: &Server, folder: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/browser");
    if !here.join("node_modules").exists() {
        let installed = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&here).status();
        assert!(installed.unwrap().success(), "npm ci in {}", here.display());
    }
    let images = std::env::var_os("KILN_TEST_IMAGES").map_or_else(|| folder.join("images"), Into::into);
    let status = Command::new("node")
        .arg(here.join(script))
        .env("BROWSER", browser)
        .env("ADDRESS", format!("http://{}", server.address))
        .env("FOLDER", folder)
        .env("IMAGES", images)
        .status();
    assert!(status.unwrap().success(), "{script} says why");
}
