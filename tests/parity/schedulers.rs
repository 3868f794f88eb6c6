//! Noise schedules and sampler steps are those of diffusers.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use kiln::{
    schedulers::{FlowMatchEuler, Scheduler, flow_match},
    weights::TensorFile,
};
use serde_json::{Value, json};

use crate::support::{Golden, goldens};

fn check_list(golden: &Golden, name: &str, values: &[f32]) {
    golden.check(name, Tensor::<1>::from_floats(values, &burn::tensor::Device::flex()));
}

fn check_levels(golden: &Golden, section: &str, sigmas: &[f32]) {
    check_list(golden, &format!("{section}.sigmas"), sigmas);
    let steps = golden.shape(&format!("{section}.timesteps"))[0];
    let timesteps: Vec<f32> = sigmas[..steps].iter().map(|s| s * 1000.0).collect();
    check_list(golden, &format!("{section}.timesteps"), &timesteps);
}

fn dev() -> FlowMatchEuler {
    FlowMatchEuler { shift: 3.0, use_dynamic_shifting: true, ..Default::default() }
}

#[test]
fn flow_match_tables_match() {
    for golden in goldens("FluxPipeline") {
        let static_shift = FlowMatchEuler { shift: 3.0, ..Default::default() };
        let final_zero = |mut table: Vec<f32>| {
            if golden.shape("sched.flow_train.sigmas")[0] == table.len() + 1 {
                table.push(0.0);
            }
            table
        };
        check_levels(&golden, "sched.flow_train", &final_zero(dev().training_sigmas()));
        check_levels(&golden, "sched.flow_train_shift3", &final_zero(static_shift.training_sigmas()));
        for section in golden.sections("sched.flow_dev.seq") {
            let tokens = golden.section(&section)["image_seq_len"].as_u64().unwrap() as usize;
            let mu = golden.section(&section)["mu"].as_f64().unwrap();
            assert!((dev().mu(tokens) - mu).abs() < 1e-12);
            let steps = golden.shape(&format!("{section}.timesteps"))[0];
            check_levels(&golden, &section, &dev().inference_sigmas(steps, tokens));
        }
    }
}

#[test]
fn flow_match_steps_match() {
    for golden in goldens("FluxPipeline") {
        for (section, scheduler, tokens) in [
            ("sched.flow_dev_steps", dev(), 1024),
            ("sched.flow_schnell_steps", FlowMatchEuler::default(), 0),
            ("sched.flow_static3_steps", FlowMatchEuler { shift: 3.0, ..Default::default() }, 0),
        ] {
            let name = |part: &str| format!("{section}.{part}");
            let steps = golden.shape(&name("timesteps"))[0];
            let sigmas = scheduler.inference_sigmas(steps, tokens);
            check_levels(&golden, section, &sigmas);
            let outputs: Tensor<5> = golden.tensor(&name("model_output"));
            let mut sample: Tensor<4> = golden.tensor(&name("start"));
            let mut samples = Vec::new();
            for i in 0..steps {
                let output = outputs.clone().narrow(0, i, 1).squeeze_dim(0);
                sample = flow_match::step(sample, output, sigmas[i], sigmas[i + 1]);
                samples.push(sample.clone());
            }
            golden.check(&name("prev_sample"), Tensor::stack::<5>(samples, 0));
        }
    }
}

#[test]
fn adding_noise_matches() {
    for golden in goldens("FluxPipeline") {
        let name = |part: &str| format!("sched.flow_scale_noise.{part}");
        let sigma = golden.tensor::<1>(&name("timesteps")) / 1000.0;
        let noisy = flow_match::add_noise::<4>(golden.tensor(&name("sample")), golden.tensor(&name("noise")), sigma);
        golden.check(&name("output"), noisy);
    }
}

#[test]
fn image_to_image_starts_where_diffusers_does() {
    for golden in goldens("FluxPipeline") {
        let scheduler = FlowMatchEuler::open(golden.model.join("scheduler")).unwrap();
        let section = golden.section("pipe.img2img");
        let number = |key: &str| section[key].as_f64().unwrap();
        let tokens = golden.shape("pipe.img2img.output")[1];
        let sigmas =
            scheduler.image_to_image_sigmas(number("num_inference_steps") as usize, tokens, number("strength"));
        let begin = golden.floats("pipe.img2img.timesteps").len();
        let run = golden.shape("pipe.img2img.steps")[0];
        assert_eq!(sigmas.len(), run + 1);
        let all = scheduler.inference_sigmas(number("num_inference_steps") as usize, tokens);
        check_levels(&golden, "pipe.img2img", &all[all.len() - 1 - begin..]);
        assert_eq!(sigmas, all[all.len() - sigmas.len()..]);
    }
}

/// What `tests/parity/flow_match.py` wrote: every setting of the class, one by one and together.
#[test]
fn every_setting_of_flow_matching_gives_the_levels_and_steps_of_diffusers() {
    let file =
        TensorFile::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/flow_match.safetensors")).unwrap();
    let floats = |name: &str| -> Vec<f32> { file.read_f32(name).unwrap().into_vec().unwrap() };
    let rows = |name: &str| {
        let stack = Tensor::<5>::from_data(file.read_f32(name).unwrap(), &Device::flex());
        (0..stack.dims()[0]).map(|i| stack.clone().narrow(0, i, 1).squeeze_dim::<4>(0)).collect::<Vec<_>>()
    };
    let (noise, outputs) = (rows("noise"), rows("model_output"));
    let cases: Vec<Value> = serde_json::from_str(&file.metadata()["cases"]).unwrap();
    assert!(cases.len() >= 30);
    for (i, case) in cases.iter().enumerate() {
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let (steps, tokens) = (count("steps"), count("image_tokens"));
        let mut settings = case.as_object().unwrap().clone();
        settings.retain(|key, _| !["steps", "image_tokens"].contains(&key.as_str()));
        let scheduler = opened(&Value::Object(settings)).unwrap();
        let sigmas = scheduler.inference_sigmas(steps, tokens);
        let expected = floats(&format!("{i}.sigmas"));
        assert_eq!(sigmas.len(), expected.len(), "{case}");
        for (got, want) in sigmas.iter().zip(&expected) {
            assert!((got - want).abs() <= 2e-6, "{case}: {sigmas:?} is not {expected:?}");
        }
        let mut run = scheduler.run(steps, tokens, 1.0).unwrap();
        let mut fresh = noise.iter().cloned();
        let mut latents = Tensor::<4>::from_data(file.read_f32("start").unwrap(), &Device::flex());
        let samples = rows(&format!("{i}.prev_sample"));
        for (index, (output, want)) in outputs.iter().zip(&samples).enumerate() {
            latents = run.step(output.clone(), index, latents, &mut || fresh.next().expect("recorded noise"));
            let difference = (latents.clone() - want.clone()).abs().max().into_scalar::<f32>();
            assert!(difference <= 2e-5, "{case}, step {index}: {difference}");
        }
    }
}

/// `scheduler_config.json` with these settings.
fn opened(settings: &Value) -> kiln::error::Result<FlowMatchEuler> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("scheduler_config.json"), settings.to_string()).unwrap();
    FlowMatchEuler::open(folder.path())
}

#[test]
fn what_flow_matching_cannot_do_is_refused_by_name() {
    for (key, value, named) in [
        ("_class_name", json!("FlowMatchHeunDiscreteScheduler"), "FlowMatchHeunDiscreteScheduler"),
        ("_class_name", json!("EulerDiscreteScheduler"), "FlowMatchEulerDiscreteScheduler"),
        ("invert_sigmas", json!(true), "not supported"),
        ("time_shift_type", json!("cosine"), "linear"),
        ("shift_terminal", json!(1.0), "below 1"),
        ("shift", json!(0.0), "above 0"),
        ("num_train_timesteps", json!(4294967295u32), "100000"),
        ("max_image_seq_len", json!(256), "base_image_seq_len"),
        ("use_karras_sigmas", json!("yes"), "boolean"),
    ] {
        let mut settings = json!({"_class_name": "FlowMatchEulerDiscreteScheduler"});
        settings[key] = value;
        let error = opened(&settings).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(named), "{key}: {error}");
    }
    let two = opened(&json!({"use_karras_sigmas": true, "use_beta_sigmas": true})).unwrap_err().to_string();
    assert!(two.contains("only one of"), "{two}");
    assert!(opened(&json!({"shift_terminal": null, "use_dynamic_shifting": null})).is_ok(), "null is not set");
    let stretched = opened(&json!({"shift_terminal": 0.1})).unwrap();
    assert!(stretched.run(1, 256, 1.0).unwrap_err().to_string().contains("shift_terminal"));
    for steps in [0, 4_294_967_295] {
        assert!(stretched.run(steps, 256, 1.0).unwrap_err().to_string().starts_with("`steps`"));
    }
}
