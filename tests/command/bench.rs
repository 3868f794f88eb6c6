//! `kiln bench`, as a user runs it: every case, a peer in alternation, and errors for what it cannot do.

use std::{path::Path, process::Output};

use serde_json::Value;

use crate::support::program::kiln;

fn bench(arguments: &[&str]) -> Output {
    kiln(&[&["bench"], arguments].concat())
}

fn report(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The smallest models with every kind of layer.
const TINY: [&str; 9] = ["--small", "--model", "all", "--layers", "1,1", "--size", "64", "--batch", "1"];

#[test]
#[cfg(unix)]
fn every_case_is_measured_beside_a_peer() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // Answers requests, but does not support text encoders.
    let peer = at("peer.sh");
    let answer = r#"{"variants": [{"name": "eager", "seconds": [2.0, 1.0, 3.0], "host_peak_bytes": 1048576, "more": 1},
        {"name": "compiled", "error": "no compiler"}], "versions": {"torch": "9.9"}}"#;
    let script = r#"while read -r line; do
        printf '%s\n' "$line" >> 'ASKED'
        case "$line" in
            *'"case":"clip"'*) printf '%s\n' '{"error": "unknown"}';;
            *) printf '%s\n' 'ANSWER';;
        esac
    done"#;
    let script = script.replace("ASKED", &at("asked")).replace("ANSWER", &answer.replace('\n', ""));
    std::fs::write(&peer, script).unwrap();
    let only = "train,sample,vae_encode,vae_decode,t5,clip,load,operations";
    let (json, page) = (at("a.json"), at("a.md"));
    let command = format!("sh {peer}");
    let files = ["--only", only, "--repeats", "1", "--json", &json, "--output", &page, "--peer", &command];
    let output = bench(&[&TINY[..], &files].concat());
    assert!(output.status.success(), "{}", errors(&output));

    let report = report(Path::new(&json));
    let rows = report["rows"].as_array().unwrap();
    for kind in ["train", "sample", "vae_encode", "vae_decode", "t5", "clip", "load", "operation"] {
        assert!(rows.iter().any(|row| row["case"]["case"] == kind), "{kind}");
    }
    for row in rows {
        let ways: Vec<_> = row["kiln"].as_array().unwrap().iter().map(|way| way["name"].as_str().unwrap()).collect();
        let train = row["case"]["case"] == "train";
        assert_eq!(ways, if train { vec!["blockwise", "kept"] } else { vec!["kiln"] }, "{row}");
        for way in row["kiln"].as_array().unwrap() {
            assert!(way["error"].is_null(), "{row}");
            assert!(way["seconds"][0].as_f64().unwrap() > 0.0 && way["first_seconds"].as_f64().unwrap() > 0.0, "{row}");
            assert!(way["host_peak_bytes"].as_u64().unwrap() > 1 << 20, "{row}");
            assert!(way["device_peak_bytes"].is_null(), "{row}"); // a CPU has none of its own
        }
        let work = &row["work"];
        assert_eq!(work.is_object(), row["case"]["case"] == "operation");
        assert!(work.is_null() || work["bytes"].as_f64().unwrap() > 0.0, "{row}");
    }
    let of = |model: &str, targets: Value| {
        rows.iter().any(|row| {
            row["case"]["model"] == model && row["case"]["targets"] == targets && row["case"]["case"] == "train"
        })
    };
    assert!(of("flux", "attention".into()) && of("flux", "all".into()) && of("unet", "attention".into()));
    assert!(of("unet", Value::Null), "a UNet is trained whole, too");

    // The peer was asked for each case as it appears in the report.
    let asked = std::fs::read_to_string(at("asked")).unwrap();
    let asked: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cases: Vec<_> = rows.iter().map(|row| row["case"].clone()).collect();
    assert_eq!(asked, cases);
    assert_eq!(report["peer"]["torch"], "9.9");

    let page = std::fs::read_to_string(&page).unwrap();
    assert_eq!(page.trim_end(), String::from_utf8_lossy(&output.stdout).trim_end());
    for text in [
        "## Models",
        "## Operations",
        "torch 9.9",
        "| eager s | ratio |",
        "no compiler",
        "unknown",
        "kiln bench --small",
    ] {
        assert!(page.contains(text), "{text} is not in\n{page}");
    }
}

#[test]
#[cfg(unix)]
fn a_peer_that_ends_is_reported_once_and_kiln_continues() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("a.json");
    let files = ["--only", "clip,gelu_tanh,copy", "--repeats", "1", "--json", json.to_str().unwrap(), "--peer", "true"];
    let output = bench(&[&TINY[..], &files].concat());
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(errors(&output).matches("continuing without it").count(), 1, "{}", errors(&output));
    let report = report(&json);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["peer"]["error"].is_string() && row["kiln"][0]["error"].is_null()), "{report}");
}

#[test]
fn impossible_cases_are_refused_with_the_next_move() {
    for (arguments, said) in [
        (&[][..], ["too large for a CPU", "--small"]),
        (&["--only", "t5"], ["`t5", "--small"]),
        (&["--small", "--only", "trian"], ["`trian` is not a case", "vae_encode"]),
        (&["--small", "--size", "100"], ["--size", "64"]),
        (&["--small", "--layers", "2"], ["--layers", "19,38"]),
        (&["--small", "--repeats", "0"], ["--repeats", "at least 1"]),
        (&["--small", "--only", "clip", "--json", "no-such-folder/a.json"], ["no-such-folder/a.json", "error: "]),
    ] {
        let output = bench(arguments);
        let text = errors(&output);
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {text}");
        assert!(said.iter().all(|said| text.contains(said)) && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn a_model_folder_that_is_none_is_an_error_of_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().to_str().unwrap();
    let output = bench(&["--small", "--only", "load", "--weights", weights, "--repeats", "1"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("config.json"), "{}", errors(&output));
}
