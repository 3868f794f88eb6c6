//! Noise schedules and sampler steps are those of diffusers.

mod support;

use burn::tensor::Tensor;
use kiln::schedulers::{FlowMatchEuler, flow_match};
use support::{Golden, goldens};

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
