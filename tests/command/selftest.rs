//! `kiln selftest`, as a user runs it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use kiln::weights::write_tensors;
use serde_json::Value;

use crate::support::program::{copy, fails, kiln, succeeds, tensors, workshop};

const FIXTURES: &str = "tests/fixtures";

/// The goldens that the self-test reads, in a folder of the test's own.
fn fixtures(name: &str) -> PathBuf {
    let folder = workshop(name);
    for entry in std::fs::read_dir(FIXTURES).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if ["flux", "ip2p"].iter().any(|model| name == *model || name == format!("{model}_golden")) {
            copy(entry.path(), folder.join(name));
        }
    }
    std::fs::copy(Path::new(FIXTURES).join("precision.json"), folder.join("precision.json")).unwrap();
    folder
}

/// Writes a golden's tensors again, one of them changed.
fn corrupt(folder: &Path, golden: &str, wanted: &str, change: impl Fn(TensorData) -> TensorData) {
    let path = folder.join(golden).join("golden.safetensors");
    let all = tensors(&path).into_iter();
    let changed = all.map(|(name, data)| if name == wanted { (name, change(data)) } else { (name, data) });
    write_tensors(&path, &changed.collect::<BTreeMap<_, _>>(), &BTreeMap::new()).unwrap();
}

#[test]
fn the_cpu_computes_what_diffusers_computes() {
    let (out, err) = succeeds(&["selftest"]);
    let mut lines = out.lines();
    assert!(lines.next().unwrap().starts_with(&format!("kiln {} on ", env!("CARGO_PKG_VERSION"))), "{out}");
    let cuda = if cfg!(feature = "cuda") { "on" } else { "off" };
    assert_eq!(lines.next().unwrap(), format!("features: cuda {cuda}"));
    assert_eq!(err, "");
    for (what, dtype) in [
        ("kernel attention 1x2x612x612x128 backward", "f32"),
        ("kernel rms_norm_rope 2x77x3x64 forward", "bf16"),
        ("flux train_lora.final", "f32"),
        ("flux train_lora.final", "bf16"),
        ("flux vae.0.decoded", "bf16"),
        ("flux_schnell_bf16 transformer.2.output", "f32"),
        ("ip2p train_ip2p.grad1", "bf16"),
        ("ip2p train_ip2p.ema.conv_in.weight", "f32"),
        ("ip2p pipe.ip2p.steps", "bf16"),
    ] {
        let start = format!("{what:47} {dtype}");
        assert_eq!(out.lines().filter(|line| line.starts_with(&start)).count(), 1, "`{start}` in {out}");
    }
    assert!(!out.contains("tf32") && !out.contains("FAIL"), "{out}");
}

#[test]
fn what_differs_fails_by_name_and_the_rest_continues() {
    let folder = fixtures("selftest_corrupt");
    let more = |data: TensorData| {
        let shape = data.shape.to_vec();
        let mut numbers: Vec<f32> = data.into_vec().unwrap();
        numbers[3] += 0.5;
        TensorData::new(numbers, shape)
    };
    corrupt(&folder, "flux_golden", "clip.pooled", more);
    corrupt(&folder, "flux_golden", "t5.input_ids", |data| {
        TensorData::new(vec![1i64 << 40; data.num_elements()], [2, 32])
    });
    let output = kiln(&["selftest", "--only", "text", "--json", "--goldens", folder.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| row["ok"] == false).collect();
    let named = |what: &str| failed.iter().filter(|row| row["what"] == what).count();
    assert_eq!((named("flux clip.pooled"), named("flux text"), failed.len()), (2, 2, 4), "{failed:?}");
    assert!(said.contains(&format!("4 of {} checks failed", rows.len())), "{said}");
    // A panic is reported, and nothing after it is missing.
    let panicked = |row: &&&Value| row["note"].as_str().is_some_and(|note| note.starts_with("panicked ("));
    assert_eq!(failed.iter().filter(panicked).count(), 2, "{failed:?}");
    assert!(rows.iter().any(|row| row["what"] == "ip2p clip.pooled" && row["ok"] == true), "{rows:?}");
    assert!(report["device"].as_str().is_some_and(|device| !device.is_empty()), "{report}");
}

#[test]
fn what_is_missing_is_said_with_the_next_move() {
    let said = fails(&["selftest", "--goldens", "no/such/folder"]);
    assert!(said.contains("no/such/folder") && said.contains("hint: ") && said.contains("--goldens"), "{said}");
    let said = fails(&["selftest", "--goldens", "configs"]);
    assert!(said.contains("configs: holds no goldens of FluxPipeline") && said.contains("--goldens"), "{said}");

    let said = fails(&["selftest", "--only", "nonsense"]);
    assert!(said.contains("`--only`") && said.contains("`nonsense`") && said.contains("ip2p"), "{said}");
}
