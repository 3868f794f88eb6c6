//! Linear layers and adapters on the stand-in GPU of `tests/cuda/standin`, with cuBLASLt and without: both match the CPU, and the
//! library's stand-in counts its calls.

#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

use std::{path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

/// How often each of the library's kernels ran in the self-test of the kernels whose names contain `only`, which must pass;
/// `None` if there is no compiler for the stand-in.
fn selftest(only: &str, paths: Option<&str>) -> Option<[u64; 4]> {
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
    Some(["", "_bias", "_onto", "_gelu_aux"].map(|epilogue| count(&format!("cublasLtMatmul{epilogue}"))))
}

#[test]
fn products_go_through_the_library_or_not_and_are_the_same() {
    // In two dtypes, three linear layers: forward one with a bias, and the gradients of input and weight. A layer with adapter and
    // activation, and one with an activation alone, each once with rows that fit the library's auxiliary output and once not: forward one
    // with a bias, one in the middle of the adapter and one onto the output or with the activation; backward four of the adapter, one onto
    // its gradient of the input, and that of the weight.
    let Some(counts) = selftest("kernel linear", None) else { return };
    let layers = [3 * 2, 3, 0, 0];
    let adapted = [[6, 1, 1, 1], [6, 1, 2, 0]];
    let activated = [[2, 0, 0, 1], [2, 1, 0, 0]];
    let all = [adapted, activated].concat().into_iter().chain([layers]);
    assert_eq!(counts, all.fold([0; 4], |sum, each| std::array::from_fn(|i| sum[i] + 2 * each[i])));
    // For each adapter: forward one, and one onto the output; backward one in the middle, and one for each of three inputs.
    assert_eq!(selftest("kernel low_rank", Some("products")), Some([2 * 2 * 5, 0, 2 * 2, 0]));
    assert_eq!(selftest("kernel linear", Some("attention")), Some([0; 4]));
}

/// Many tensors per launch: of several sizes and alignments, and more than one launch takes.
#[test]
fn the_optimizer_updates_many_tensors_at_once() {
    selftest("kernel adamw", None);
}
