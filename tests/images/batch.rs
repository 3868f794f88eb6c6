//! `kiln batch`: names, sizes and random choices, and a report of time and memory.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{
    program::{MODEL, fails, succeeds},
    sampling::{EDITS, MAKES, draw, model, same_picture},
};

const SIZES: [(&str, (u32, u32)); 5] =
    [("a.png", (64, 48)), ("b.jpg", (200, 150)), ("c.webp", (40, 90)), ("d.png", (64, 48)), ("e.JPEG", (30, 30))];

/// A folder of images of several formats and sizes, a file that is none, and one that is cut short.
fn pictures(folder: &Path) -> PathBuf {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (i, (name, (width, height))) in SIZES.into_iter().enumerate() {
        draw(&pictures.join(name), width, height, i as u32);
    }
    std::fs::write(pictures.join("notes.txt"), "not an image").unwrap();
    let whole = std::fs::read(pictures.join("a.png")).unwrap();
    std::fs::write(pictures.join("z.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(pictures.join("empty.jpg"), "").unwrap();
    pictures
}

/// Runs over a folder; returns the table and the report.
fn batch(pictures: &Path, output: &Path, more: &[&str]) -> (String, Value) {
    let start = ["batch", pictures.to_str().unwrap(), "--steps", "3", "--output", output.to_str().unwrap()];
    let (out, _) = succeeds(&[&start[..], more].concat());
    (out, serde_json::from_slice(&std::fs::read(output.join("report.json")).unwrap()).unwrap())
}

#[test]
fn names_and_sizes_are_kept_and_unreadable_files_are_left_out_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    for class in [MAKES, EDITS] {
        let (output, model) = (folder.path().join(class), model(class));
        let (table, report) = batch(&pictures, &output, &["--model", &model, "--prompt", "snow", "--batch-size", "2"]);
        for (name, size) in SIZES {
            assert_eq!(image::image_dimensions(output.join(name)).unwrap(), size, "{name}");
            assert!(std::fs::read(output.join(name)).unwrap() != std::fs::read(pictures.join(name)).unwrap());
        }
        assert_eq!(std::fs::read_dir(&output).unwrap().count(), SIZES.len() + 1);
        let done = report["pictures"].as_array().unwrap();
        let names: Vec<_> = done.iter().map(|done| done["name"].as_str().unwrap()).collect();
        assert_eq!(names, SIZES.map(|(name, _)| name));
        assert!(done.iter().all(|done| done["seconds"].as_f64().unwrap() > 0.0 && done["prompt"] == "snow"));
        assert_eq!(done[0]["batch"], 2); // with d.png
        assert!(done.iter().all(|done| done["strength"].is_null() == (class == EDITS)));
        let skipped: Vec<_> =
            report["skipped"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(skipped, ["empty.jpg", "z.png"]);
        let work = &report["models"][0];
        assert_eq!((work["pictures"].as_u64(), work["batches"].as_u64()), (Some(5), Some(4)));
        let number = |key: &str| work[key].as_f64().unwrap();
        assert!(number("seconds") > 0.0 && report["seconds"].as_f64().unwrap() >= number("seconds"));
        if cfg!(target_os = "linux") {
            assert!(number("peak_mib") >= number("average_mib") && number("average_mib") > 1.0, "{work}");
        }
        for wanted in ["average MiB", "peak MiB", "s/image", &model, "z.png", "5 images in"] {
            assert!(table.contains(wanted), "{wanted} is not in {table}");
        }
    }
}

#[test]
fn what_is_drawn_for_an_image_depends_on_seed_and_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    let config = folder.path().join("batch.toml");
    let (makes, edits) = (model(MAKES), model(EDITS));
    let lists =
        format!("models = ['{makes}', '{edits}']\nprompts = ['snow', 'rain', 'night']\nstrengths = [0.5, 0.9]\n");
    std::fs::write(&config, lists).unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let run = |name: &str, more: &[&str]| batch(&pictures, &folder.path().join(name), &[&config, more].concat()).1;
    let drawn = |report: &Value| -> Vec<[Value; 4]> {
        let done = report["pictures"].as_array().unwrap();
        done.iter().map(|done| ["name", "model", "prompt", "strength"].map(|key| done[key].clone())).collect()
    };
    let all = run("all", &[]);
    assert_eq!(drawn(&run("again", &[])), drawn(&all));
    for name in SIZES.map(|(name, _)| name) {
        assert_eq!(
            std::fs::read(folder.path().join("all").join(name)).unwrap(),
            std::fs::read(folder.path().join("again").join(name)).unwrap()
        );
    }
    let other: Vec<_> =
        (1..4).map(|seed| drawn(&run(&format!("seed-{seed}"), &["--seed", &seed.to_string()]))).collect();
    assert!(other.iter().any(|other| *other != drawn(&all)));
    let models: std::collections::BTreeSet<_> =
        other.iter().flatten().map(|[_, model, ..]| model.as_str().unwrap().to_string()).collect();
    assert_eq!(models.len(), 2, "both models are drawn sometimes");

    let alone = run("alone", &["--image", "b.jpg"]);
    assert_eq!(drawn(&alone), [drawn(&all)[1].clone()]);
    same_picture(&folder.path().join("alone/b.jpg"), &folder.path().join("all/b.jpg"));

    // What is given on the command line is not chosen at random.
    let said = run("said", &["--prompt", "fog", "--model", &makes, "--strength", "0.7"]);
    assert!(drawn(&said).iter().all(|[_, model, prompt, strength]| {
        model == makes.as_str() && prompt == "fog" && strength.as_f64() == Some(0.7)
    }));
}

#[test]
fn bad_input_is_named_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let pictures = pictures(folder.path());
    let (makes, edits, output) = (model(MAKES), model(EDITS), at("out"));
    std::fs::write(at("unknown.toml"), "modells = []").unwrap();
    std::fs::create_dir(at("none")).unwrap();
    std::fs::create_dir(at("broken")).unwrap();
    std::fs::copy(pictures.join("z.png"), folder.path().join("broken/one.png")).unwrap();
    let model = ["--model", &makes];
    let both = ["--model", &makes, "--prompt", "snow"];
    let unknown = at("unknown.toml");
    let pictures = pictures.to_str().unwrap();
    for (from, more, wanted) in [
        (pictures, &model[..], "`--prompt`: is not given"),
        (pictures, &["--prompt", "snow"], "`--model`: is not given"),
        (pictures, &["--config", &unknown], "modells"),
        (pictures, &[&both[..], &["--strength", "1.5"]].concat(), "1.5 is not above 0 and at most 1"),
        (pictures, &[&both[..], &["--batch-size", "0"]].concat(), "`--batch-size`"),
        (pictures, &[&both[..], &["--image-guidance", "2"]].concat(), "`--image-guidance`: is not supported by "),
        (pictures, &["--model", "no/such/model", "--prompt", "snow"], "no/such/model"),
        (pictures, &["--model", &edits, "--prompt", ""], "`--prompt`: is empty"),
        (
            pictures,
            &[&both[..], &["--model", MODEL, "--scheduler", "ddim"]].concat(),
            "`--scheduler`: is not supported by FLUX.1",
        ),
        (pictures, &[&both[..], &["--strength", "0.1"]].concat(), "leaves none of the 2 steps"),
        (&at("none"), &both, "no images"),
        (&at("broken"), &both, "one.png"),
    ] {
        let start = ["batch", from, "--steps", "2", "--output", &output];
        let said = fails(&[&start[..], more].concat());
        assert!(said.contains(wanted), "{more:?}: {said}");
        assert!(from == at("broken") || !Path::new(&output).exists(), "{more:?}");
    }
    std::fs::create_dir(at("reported")).unwrap();
    std::fs::write(folder.path().join("reported/report.json"), "{}").unwrap();
    for (output, name) in [(pictures, "a.png"), (&at("reported"), "report.json")] {
        let said = fails(&[&["batch", pictures, "--output", output][..], &both].concat());
        assert!(said.contains(&format!("{name}: already exists, and kiln does not overwrite it")), "{said}");
    }
}

#[test]
fn a_dry_run_shows_the_memory_of_each_model_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, output) = (pictures(folder.path()), folder.path().join("out"));
    let models = [model(MAKES), model(EDITS)];
    let start = ["batch", pictures.to_str().unwrap(), "--output", output.to_str().unwrap(), "--dry-run"];
    let more = ["--model", &models[0], "--model", &models[1], "--prompt", "snow", "--memory", "ultra"];
    let (out, _) = succeeds(&[&start[..], &more].concat());
    let counts: Vec<usize> = models
        .iter()
        .map(|model| {
            let line = out.lines().find(|line| line.starts_with(model.as_str())).unwrap_or_else(|| panic!("{out}"));
            line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    // The header of a truncated file still has the size.
    assert_eq!(counts.iter().sum::<usize>(), SIZES.len() + 1, "{out}");
    assert_eq!(out.matches("memory at level `ultra`").count(), 2, "{out}");
    assert!(out.contains("denoise") && out.contains("left out: ") && out.contains("empty.jpg: "), "{out}");
    assert!(!output.exists());
    // Errors are reported as without it.
    let said = fails(&[&start[..], &["--model", "nowhere", "--prompt", "snow"]].concat());
    assert!(said.contains("nowhere"), "{said}");
    let said = fails(&[&start[..], &["--model", &models[0], "--prompt", "snow", "--memory-limit", "1KB"]].concat());
    assert!(said.contains("even `ultra` needs"), "{said}");
}
