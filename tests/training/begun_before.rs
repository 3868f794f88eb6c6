//! Runs that were started before blocks were lent resume and end as they would have then.
//!
//! `tests/fixtures/begun_before` holds, of one run with FLUX.1 and two with a UNet, the checkpoint after step 2 and that after
//! step 6 of the same run uninterrupted, both written by kiln at commit bf5538c: flips, dropped captions or conditions and
//! accumulation are on; in the two that train an adapter, dropout and an EMA too, while the third trains the whole UNet, which it
//! widens. Only the paths in `config.toml` have changed since: models and images have moved.

use std::path::Path;

use burn::tensor::{DType, Device, TensorData};
use kiln::training::{self, Silent};

use crate::support::program::{copy, tensors, workshop};

/// Whether this machine has the vector instructions of the one that wrote the fixtures: sums depend on their width.
fn has_their_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().convert_dtype(DType::F32).into_vec().unwrap()
}

/// Resumes a run of the fixtures and compares these files of its last checkpoint.
fn goes_on(name: &str, files: &[&str]) {
    let fixtures = Path::new("tests/fixtures/begun_before");
    let workshop = workshop(&format!("begun_before_{name}"));
    let run = workshop.join(name);
    copy(fixtures.join(name), &run);
    let here =
        [format!("run.output='{}'", workshop.display()), format!("data.cache='{}'", workshop.join("cache").display())];
    let config = training::run_config(&run, &here).unwrap();
    assert_eq!(config.training.max_steps, 6);
    training::train(&config, Some(&run), &Device::flex(), &mut Silent).unwrap();
    for file in files {
        let file = format!("{file}.safetensors");
        let expected = tensors(fixtures.join(format!("{name}-ended")).join(&file));
        let found = tensors(run.join("step-000006").join(&file));
        let before = tensors(run.join("step-000002").join(&file));
        assert!(!expected.is_empty() && before != expected, "{file}: something was learned");
        if has_their_instructions() {
            assert!(found == expected, "{name}: {file} has other bits than it had before");
            continue;
        }
        for ((found_name, found), (expected_name, expected)) in found.iter().zip(&expected) {
            assert_eq!(found_name, expected_name);
            let (found, expected) = (floats(found), floats(expected));
            let size = expected.iter().fold(1e-6f32, |most, v| most.max(v.abs()));
            let apart = found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(found.len() == expected.len() && apart <= 1e-3 * size, "{name}: {file}: {found_name}: {apart}");
        }
    }
}

#[test]
fn a_flux_run_resumes_bit_for_bit() {
    goes_on("flux", &["adapter", "ema", "optimizer"]);
}

#[test]
fn a_unet_run_resumes_bit_for_bit() {
    goes_on("unet", &["adapter", "ema", "optimizer"]);
}

#[test]
fn a_run_of_all_weights_resumes_bit_for_bit() {
    goes_on("full", &["weights"]);
}
