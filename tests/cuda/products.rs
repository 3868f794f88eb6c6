//! Linear layers and adapters on the stand-in GPU of `tests/cuda/standin`, with cuBLASLt and without: both match the CPU, and the
//! library's stand-in counts its calls.

#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

use std::{path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

/// How often each of the library's kernels ran in the self-test of the kernels whose names contain `only`, which must pass;
/// `None` if there is no compiler for the stand-in.
fn selftest(only: &str, paths: Option<&str>) -> Option<[u64; 3]> {
    if Command::new("g++").arg("--version").output().is_err() {
        kiln::training::print_error("skipped: the stand-in needs g++");
        return None;
    }
    let (here, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")), TempDir::new().unwrap());
    let report = folder.path().join("report");
    let mut command = Command::new(here.join("tests/cuda/standin/run.sh"));
    command.args(["run", env!("CARGO_BIN_EXE_kiln"), "selftest", "--device", "cuda", "--only", only]);
    for other in ["CUDA_PATH", "NVRTC", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "KILN_CUDA_PATHS"] {
        command.env_remove(other);
    }
    command.env("STANDIN_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin"));
    command.env("STANDIN_REPORT", &report).env("KILN_CACHE", folder.path().join("cache"));
    command.envs(paths.map(|paths| ("KILN_CUDA_PATHS", paths))).current_dir(here);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let count = |name: &str| report["by_kernel"][name][0].as_u64().unwrap_or(0);
    Some(["cublasLtMatmul", "cublasLtMatmul_bias", "cublasLtMatmul_onto"].map(count))
}

#[test]
fn products_go_through_the_library_or_not_and_are_the_same() {
    // For each linear layer, in two dtypes: forward, and the gradients of input and weight.
    let Some(counts) = selftest("kernel linear", None) else { return };
    assert_eq!(counts, [3 * 2 * 2, 3 * 2, 0]);
    // For each adapter: forward one, and one onto the output; backward one in the middle, and one for each of three inputs.
    assert_eq!(selftest("kernel low_rank", Some("products")), Some([2 * 2 * 5, 0, 2 * 2]));
    assert_eq!(selftest("kernel linear", Some("attention")), Some([0; 3]));
}

/// Many tensors per launch: of several sizes and alignments, and more than one launch takes.
#[test]
fn the_optimizer_updates_many_tensors_at_once() {
    selftest("kernel adamw", None);
}
