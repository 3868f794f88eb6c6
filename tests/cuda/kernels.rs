//! All kernels on the stand-in GPU of `tests/cuda/standin`; linear layers and adapters with cuBLASLt and without: all match the CPU, and the
//! library's stand-in counts its calls.

#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use tempfile::TempDir;

/// How often each of the library's kernels ran in the self-test of the kernels whose names contain `only`, which must pass;
/// `None` if there is no compiler for the stand-in.
fn selftest(only: &str, paths: Option<&str>) -> Option<[u64; 4]> {
    if Command::new("g++").arg("--version").output().is_err() {
        kiln::training::print_error("skipped: the stand-in needs g++");
        return None;
    }
    // The first builds the stand-ins for all.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
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
    // For each linear layer, in two dtypes: forward, and the gradients of input and weight.
    let Some(counts) = selftest("kernel linear", None) else { return };
    assert_eq!(counts, [3 * 2 * 2, 3 * 2, 0, 0]);
    // With adapter and activation: forward one with a bias, one in the middle of the adapter, and one onto the output, which takes the
    // activation along if its rows fit; backward four of the adapter, one onto its gradient of the input, and that of the weight. With
    // the activation alone, which takes the bias along: forward one, backward two.
    let (adapted, activated) = ([[6, 1, 1, 1], [6, 1, 2, 0]], [[2, 0, 0, 1], [2, 1, 0, 0]]);
    let both = adapted.iter().chain(&activated).fold([0; 4], |sum, each| std::array::from_fn(|i| sum[i] + 2 * each[i]));
    assert_eq!(selftest("kernel gelu_of", None), Some(both));
    // For each adapter: forward one, and one onto the output; backward one in the middle, and one for each of three inputs.
    assert_eq!(selftest("kernel low_rank", Some("epilogues")), Some([2 * 2 * 5, 0, 2 * 2, 0]));
    // Without epilogues, the one onto the output is a product, and the addition another launch.
    assert_eq!(selftest("kernel low_rank", Some("products")), Some([2 * 2 * 6, 0, 0, 0]));
    assert_eq!(selftest("kernel linear", Some("attention")), Some([0; 4]));
}

/// Forward and backward, in f32 and bf16, with the libraries' stand-ins.
#[test]
fn kernels_match_the_cpu() {
    selftest("kernel", None);
}
