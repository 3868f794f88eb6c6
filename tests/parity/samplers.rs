//! The samplers of Stable Diffusion take the steps of diffusers.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use kiln::{
    schedulers::{
        Scheduler, SchedulerConfig, SchedulerName, dpm_solver::DpmSolver, euler::Euler,
        euler_ancestral::EulerAncestral, heun::Heun, uni_pc::UniPc,
    },
    weights::TensorFile,
};
use serde_json::{Value, json};

use crate::support::{Golden, goldens};

fn stable_diffusion() -> Vec<Golden> {
    ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionPipeline"]
        .iter()
        .flat_map(|class| goldens(class))
        .collect()
}

/// The configuration read from a file with these settings.
fn config(settings: &Value) -> kiln::error::Result<SchedulerConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("scheduler_config.json"), settings.to_string()).unwrap();
    SchedulerConfig::open(folder.path())
}

fn with(mut settings: Value, key: &str, value: Value) -> Value {
    settings[key] = value;
    settings
}

/// The settings of a section, as diffusers would save them.
fn settings(golden: &Golden, section: &str) -> Value {
    let section = golden.section(section);
    with(section["config"].clone(), "_class_name", section["cls"].clone())
}

/// The noise levels, where the sampler has them.
fn sigmas(config: &SchedulerConfig, steps: usize) -> Option<Vec<f64>> {
    match config.name.unwrap() {
        SchedulerName::Euler => Some(Euler::new(config, steps).unwrap().sigmas().to_vec()),
        SchedulerName::EulerAncestral => Some(EulerAncestral::new(config, steps).unwrap().sigmas().to_vec()),
        SchedulerName::UniPc => Some(UniPc::new(config, steps).unwrap().sigmas().to_vec()),
        SchedulerName::Heun => Some(Heun::new(config, steps).unwrap().sigmas().to_vec()),
        SchedulerName::DpmSolver | SchedulerName::DpmSolverKarras => {
            Some(DpmSolver::new(config, steps).unwrap().sigmas().to_vec())
        }
        _ => None,
    }
}

/// Asserts equality up to the last bits of f32.
#[track_caller]
fn check_table(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: {got:?} {want:?}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-6 * want.abs(), "{name}: {got} is not {want}");
    }
}

/// A table of the goldens, in which whole numbers are integers.
fn table(golden: &Golden, name: &str) -> Vec<f64> {
    let file = TensorFile::open(golden.folder.join("golden.safetensors")).unwrap();
    match file.dtype(name).unwrap().as_str() {
        "I64" => golden.ids(name).into_iter().map(|t| t as f64).collect(),
        _ => golden.floats(name).into_iter().map(f64::from).collect(),
    }
}

fn check_tables(golden: &Golden, section: &str, config: &SchedulerConfig, steps: usize) {
    let got = config.scheduler(steps).unwrap();
    check_table(section, got.timesteps(), &table(golden, &format!("{section}.timesteps")));
    if let Some(got) = sigmas(config, steps) {
        check_table(section, &got, &table(golden, &format!("{section}.sigmas")));
    }
}

/// Runs `outputs` from call `begin` on; returns the model's inputs and the latents after each call.
fn run(
    scheduler: &mut dyn Scheduler,
    begin: usize,
    start: Tensor<4>,
    outputs: &[Tensor<4>],
    noise: &[Tensor<4>],
) -> (Tensor<5>, Tensor<5>) {
    let (mut latents, mut inputs, mut samples) = (start, vec![], vec![]);
    let mut fresh = noise.iter().cloned();
    for (i, output) in outputs.iter().enumerate() {
        inputs.push(scheduler.scale_model_input(latents.clone(), begin + i));
        latents = scheduler.step(output.clone(), begin + i, latents, &mut || fresh.next().expect("recorded noise"));
        samples.push(latents.clone());
    }
    (Tensor::stack(inputs, 0), Tensor::stack(samples, 0))
}

/// The rows of a stack.
fn rows(stack: Tensor<5>) -> Vec<Tensor<4>> {
    (0..stack.dims()[0]).map(|i| stack.clone().narrow(0, i, 1).squeeze_dim(0)).collect()
}

/// The configurations that should give what a section has: its own, and the model's with the sampler chosen by name where
/// nothing else was changed.
fn configs(golden: &Golden, section: &str) -> Vec<SchedulerConfig> {
    let own = config(&settings(golden, section)).unwrap();
    let name = match section {
        "sched.ddpm" => SchedulerName::Ddpm,
        "sched.ddim" => SchedulerName::Ddim,
        "sched.pndm" => SchedulerName::Pndm,
        "sched.euler" => SchedulerName::Euler,
        "sched.euler_a" => SchedulerName::EulerAncestral,
        "sched.dpmpp_2m" => SchedulerName::DpmSolver,
        "sched.dpmpp_2m_karras" => SchedulerName::DpmSolverKarras,
        _ => return vec![own],
    };
    assert_eq!(own.name, Some(name));
    vec![own, SchedulerConfig::open(golden.model.join("scheduler")).unwrap().with_name(name)]
}

#[test]
fn runs_match() {
    for golden in stable_diffusion() {
        let sections =
            golden.sections("sched.").into_iter().filter(|section| golden.section(section)["cls"].is_string());
        for section in sections {
            let name = |part: &str| format!("{section}.{part}");
            let steps = golden.section(&section)["steps"].as_u64().unwrap() as usize;
            for config in configs(&golden, &section) {
                if golden.section(&section)["config"]["skip_prk_steps"] == false && section == "sched.pndm" {
                    let error = config.scheduler(steps).unwrap_err().to_string();
                    assert!(error.contains("scheduler_config.json: `skip_prk_steps`"), "{error}");
                    continue;
                }
                check_tables(&golden, &section, &config, steps);
                for steps in [4, 20, 50] {
                    check_tables(&golden, &name(&format!("n{steps}")), &config, steps);
                }
                let mut scheduler = config.scheduler(steps).unwrap();
                let init = golden.section(&section)["init_noise_sigma"].as_f64().unwrap();
                check_table(&section, &[scheduler.init_noise_sigma()], &[init]);
                let noise = if golden.has(&name("noise")) { rows(golden.tensor(&name("noise"))) } else { vec![] };
                let outputs = rows(golden.tensor(&name("model_output")));
                let (inputs, samples) = run(&mut *scheduler, 0, golden.tensor(&name("start")), &outputs, &noise);
                golden.check(&name("model_input"), inputs);
                golden.check(&name("prev_sample"), samples);
            }
        }
    }
}

#[test]
fn noise_schedules_match() {
    for golden in stable_diffusion() {
        let config = SchedulerConfig::open(golden.model.join("scheduler")).unwrap();
        let schedule = config.noise_schedule();
        let alphas = golden.floats("sched.alphas_cumprod.alphas_cumprod");
        let alphas: Vec<f64> = alphas.into_iter().map(f64::from).collect();
        let got: Vec<f64> = schedule.alphas_cumprod.iter().copied().map(f64::from).collect();
        check_table("alphas_cumprod", &got, &alphas);
        assert!((schedule.snr(800) - alphas[800] / (1.0 - alphas[800])).abs() < 1e-6);
        let latents = || golden.tensor::<4>("sched.add_noise.sample");
        let noise = || golden.tensor::<4>("sched.add_noise.noise");
        let timesteps = golden.ids("sched.add_noise.timesteps");
        golden.check("sched.add_noise.output", schedule.add_noise(latents(), noise(), &timesteps));
        golden.check("sched.add_noise.velocity", schedule.velocity(latents(), noise(), &timesteps));
    }
}

/// What `tests/parity/samplers.py` wrote: every sampler with other betas, `v`, other orders, and started late.
#[test]
fn rarer_runs_match() {
    check_runs("samplers.safetensors");
}

/// UniPC, Heun, LCM, and noise levels along a curve.
#[test]
fn samplers_that_no_model_comes_with_match() {
    check_runs("samplers_more.safetensors");
}

fn check_runs(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let file = TensorFile::open(file).unwrap();
    let floats = |name: &str| -> Vec<f32> { file.read_f32(name).unwrap().into_vec().unwrap() };
    let doubles = |name: &str| -> Vec<f64> { floats(name).into_iter().map(f64::from).collect() };
    let stack = |name: &str| Tensor::<5>::from_data(file.read_f32(name).unwrap(), &Device::flex());
    let start = Tensor::<4>::from_data(file.read_f32("start").unwrap(), &Device::flex());
    let (noise, outputs) = (rows(stack("noise")), rows(stack("model_output")));
    let largest = |values: &[f32]| values.iter().fold(0f32, |size, value| size.max(value.abs()));
    // Twenty times what f32 can tell apart, of values this large, and two roundings of `from`, what the run starts from: at a
    // zero terminal level that is 4096 times the noise, and after one step nothing of it is left but what rounding left, in
    // diffusers (2e-4 away from the same steps in f64) as here.
    let check = |label: &str, name: &str, got: Vec<f32>, from: f32| {
        let want = floats(name);
        let size = 20.0 * largest(&want) + 2.0 * from;
        assert_eq!(got.len(), want.len(), "{label}");
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= f32::EPSILON * size, "{label}: {got} is not {want}");
        }
    };
    let cases: Vec<Value> = serde_json::from_str(&file.metadata()["cases"]).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let name = |part: &str| format!("{i}.{part}");
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let (steps, begin) = (count("steps"), count("begin"));
        let config = config(case).unwrap();
        let mut scheduler = config.scheduler(steps).unwrap();
        check_table(&case.to_string(), scheduler.timesteps(), &doubles(&name("timesteps")));
        check_table(&case.to_string(), &[scheduler.init_noise_sigma()], &[case["init_noise_sigma"].as_f64().unwrap()]);
        if let Some(sigmas) = sigmas(&config, steps) {
            check_table(&case.to_string(), &sigmas, &doubles(&name("sigmas")));
        }
        let added = scheduler.add_noise(start.clone(), noise[0].clone(), begin);
        let calls = scheduler.timesteps().len() - begin;
        let (inputs, samples) = run(&mut *scheduler, begin, added.clone(), &outputs[..calls], &noise[1..]);
        let from = largest(&floats(&name("added")));
        check(&format!("{case}, start"), &name("added"), added.into_data().into_vec().unwrap(), from);
        check(&format!("{case}, samples"), &name("prev_sample"), samples.into_data().into_vec().unwrap(), from);
        if file.has(&name("model_input")) {
            check(&format!("{case}, inputs"), &name("model_input"), inputs.into_data().into_vec().unwrap(), from);
        }
    }
}

#[test]
fn every_number_of_steps_works_or_is_refused() {
    use clap::ValueEnum;
    for spacing in ["leading", "linspace", "trailing"] {
        let settings = json!({ "_class_name": "DDIMScheduler", "timestep_spacing": spacing, "skip_prk_steps": true,
            "num_train_timesteps": 60, "steps_offset": 1 });
        let config = config(&settings).unwrap();
        for &name in SchedulerName::value_variants() {
            for steps in 0..=61 {
                match config.with_name(name).scheduler(steps) {
                    Ok(mut scheduler) => {
                        let calls = scheduler.timesteps().len();
                        let more = match name {
                            SchedulerName::Pndm => usize::from(steps > 1),
                            SchedulerName::Heun => steps - 1,
                            _ => 0,
                        };
                        assert_eq!(calls, steps + more);
                        let outputs = vec![Tensor::ones([1, 1, 1, 1], &Device::flex()); calls];
                        let (_, samples) = run(&mut *scheduler, 0, outputs[0].clone(), &outputs, &outputs);
                        let samples: Vec<f32> = samples.into_data().into_vec().unwrap();
                        assert!(samples.iter().all(|value| value.is_finite()), "{name:?} {spacing} {steps}");
                        assert!((1..=60).contains(&steps));
                    }
                    Err(error) => {
                        assert!(error.to_string().starts_with("`steps`"), "{error}");
                        // Latent consistency models are distilled with 50 steps.
                        let most = if name == SchedulerName::Lcm { 51 } else { 59 };
                        assert!(!(1..most).contains(&steps), "{name:?} {spacing} {steps}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let base = json!({ "_class_name": "DDIMScheduler" });
    for (key, value, word) in [
        ("prediction_type", json!("sample"), "epsilon"),
        ("_class_name", json!("FlowMatchEulerDiscreteScheduler"), "betas"),
        ("num_train_timesteps", json!(1), "100000"),
        ("beta_schedule", json!("sigmoid"), "scaled_linear"),
        ("beta_end", json!(1.5), "between 0 and 1"),
        ("trained_betas", json!([0.1, 0.2]), "between 0 and 1"),
        ("rescale_betas_zero_snr", json!(true), "v_prediction"),
    ] {
        let error = config(&with(base.clone(), key, value)).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(key) && error.contains(word), "{error}");
    }
    for (class, key, value) in [
        ("DDIMScheduler", "thresholding", json!(true)),
        ("DDIMScheduler", "timestep_spacing", json!("odd")),
        ("DDPMScheduler", "variance_type", json!("learned_range")),
        ("PNDMScheduler", "skip_prk_steps", json!(false)),
        ("EulerDiscreteScheduler", "timestep_type", json!("continuous")),
        ("DPMSolverMultistepScheduler", "algorithm_type", json!("sde-dpmsolver++")),
        ("DPMSolverMultistepScheduler", "solver_order", json!(4)),
        ("KDPM2DiscreteScheduler", "_class_name", json!("KDPM2DiscreteScheduler")),
    ] {
        let settings = with(with(base.clone(), "_class_name", json!(class)), key, value);
        let error = config(&settings).unwrap().scheduler(4).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(key), "{error}");
    }
    // Training with such a model, or sampling by name, works nevertheless.
    let other = config(&with(base, "_class_name", json!("KDPM2DiscreteScheduler"))).unwrap();
    assert!(other.with_name(SchedulerName::Euler).scheduler(4).is_ok());
    assert_eq!(other.noise_schedule().alphas_cumprod.len(), 1000);
}

/// Python writes a number that JSON does not have.
#[test]
fn files_of_diffusers_with_infinity_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        r#"{ "_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "variance_type": null }"#;
    std::fs::write(folder.path().join("scheduler_config.json"), text).unwrap();
    assert!(SchedulerConfig::open(folder.path()).unwrap().scheduler(4).is_ok());
}
