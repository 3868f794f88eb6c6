//! Sessions leave nothing in memory. A single test, so that nothing else allocates in this process at the same time.
#![cfg(target_os = "linux")]

mod support;

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor};
use kiln::{
    generation::{Images, SamplingOptions, Session},
    limits::Limits,
    lora::{Denoiser, Lora, LoraConfig, Targets},
    memory,
    models::Network,
    pipelines::{FluxPipeline, StableDiffusionPipeline},
    rng::Seed,
};
use support::goldens;

/// What the allocator may keep between two equal runs, in MiB.
const SLACK: f64 = 3.0;

const CLASSES: [&str; 2] = ["FluxPipeline", "StableDiffusionPipeline"];

fn images(seed: u64, side: usize) -> Images {
    Images {
        prompts: vec!["a red circle".into()],
        seeds: vec![seed],
        width: side,
        height: side,
        originals: vec![],
        strength: 1.0,
        mask: None,
        sampling: SamplingOptions { steps: Some(2), ..SamplingOptions::default() },
    }
}

fn resident() -> f64 {
    memory::usage(&Device::flex()).resident_mib()
}

/// Asserts that no more than `level` MiB are in use, now or within a second.
#[track_caller]
fn back_at(level: f64, what: &str) {
    let started = Instant::now();
    while resident() > level + SLACK {
        let (now, patience) = (resident(), Duration::from_secs(1));
        assert!(started.elapsed() < patience, "{what}: {now:.1} MiB after a second, {level:.1} before");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An adapter for the model of this class that produces values which are not finite.
fn broken(class: &str) -> Lora {
    let (model, device, dtype) = (&goldens(class)[0].model, Device::flex(), burn::tensor::FloatDType::F32);
    let (denoiser, layers) = match class {
        "FluxPipeline" => {
            (Denoiser::Transformer, FluxPipeline::open(model, &device, dtype).unwrap().transformer.layers())
        }
        _ => (Denoiser::Unet, StableDiffusionPipeline::open(model, &device, dtype).unwrap().unet.layers()),
    };
    let config = LoraConfig { rank: 1, targets: Targets::All, ..LoraConfig::default() };
    let mut lora = Lora::init(&config, denoiser, Seed(0), &layers, &device).unwrap();
    lora.layers.iter_mut().for_each(|layer| layer.b = Tensor::full(layer.b.dims(), f32::INFINITY, &device));
    lora
}

#[test]
fn memory_is_back_at_its_level_after_success_error_cancelling_and_unloading() {
    memory::tune_allocator(); // as the program does
    let device = Device::flex();
    for class in CLASSES {
        let broken = broken(class);
        let model = goldens(class)[0].model.to_str().unwrap().to_string();
        let open = || Session::open(&model, &device).unwrap().keeping_text_encoders();
        let generate = |session: &mut Session, seed, side| {
            let made = session.make(&images(seed, side), &mut |_| ControlFlow::Continue(()));
            made.unwrap().finished().expect("nobody cancelled it")
        };
        // A session before it, for one-time allocations, such as the threads' buffers for large products.
        let mut session = open();
        [64, 512, 64].into_iter().for_each(|side| drop(generate(&mut session, 0, side)));
        drop(session);
        memory::release(&device);
        let unloaded = resident();
        let mut session = open();
        [64, 512, 64, 64].into_iter().for_each(|side| drop(generate(&mut session, 0, side)));
        let level = resident();

        for seed in 0..100 {
            drop(generate(&mut session, seed, 64));
        }
        back_at(level, &format!("{class}: after 100 images"));

        // Large ones, several times, so that leaks add up.
        const TIMES: usize = 5;
        (0..TIMES).for_each(|_| drop(generate(&mut session, 0, 512)));
        back_at(level, &format!("{class}: after success"));

        for _ in 0..TIMES {
            let mut steps = 0;
            let cancelled = session.make(&images(0, 512), &mut |_| {
                steps += 1;
                ControlFlow::Break(())
            });
            assert!(cancelled.unwrap().finished().is_none() && steps == 1);
        }
        back_at(level, &format!("{class}: after cancelling"));

        session.set_adapters([(&broken, 1.0)]).unwrap();
        for _ in 0..TIMES {
            let failed = session.make(&images(0, 512), &mut |_| ControlFlow::Continue(()));
            assert!(failed.is_err(), "numbers that are not finite make no image");
        }
        session.set_adapters([]).unwrap();
        back_at(level, &format!("{class}: after an error"));

        let mut session = session.within(Limits { vae_rows: Some(16), ..Limits::NONE });
        for seed in 0..100 {
            drop(generate(&mut session, seed, 64));
        }
        back_at(level, &format!("{class}: after 100 images within limits"));

        session.release().unwrap();
        drop(session);
        memory::release(&device);
        // Embeddings and paged-in code stay; the weights themselves are a few MiB.
        back_at(unloaded + 2.0 * SLACK, &format!("{class}: after unloading"));
    }
}
