//! Switching adapters changes no weight and takes almost no time.

use std::{io::Write, time::Instant};

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    generation::{Images, SamplingOptions, Session},
    lora::Lora,
    memory,
    models::text::PromptEmbeds,
    nn::{Adapters, Parameter, Parameters},
    pipelines::{FluxPipeline, Pipeline, Request},
    serve::{Service, config::LOCAL},
};

use crate::support::serving::{
    NANO, adapter, adapters, config, layers, request, root, start, submit, wait, with_loras,
};

/// The hash of all weights of the denoiser in memory.
fn hash(pipeline: &FluxPipeline) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    pipeline.transformer.clone().parameters("", &mut |name, parameter| {
        hasher.update(name.as_bytes());
        let data = match parameter {
            Parameter::Matrix(tensor) => tensor.clone().into_data(),
            Parameter::Vector(tensor) => tensor.clone().into_data(),
            Parameter::Kernel(tensor) => tensor.clone().into_data(),
        };
        hasher.update(data.as_bytes());
    });
    hasher.finalize()
}

#[test]
fn switching_adapters_leaves_the_weights_as_they_were() {
    let switches = std::env::var("KILN_TEST_SWITCHES").map_or(300, |count| count.parse().unwrap());
    let pipeline = FluxPipeline::open(root(NANO), &Device::flex(), FloatDType::F32).unwrap();
    let layers = layers(NANO);
    let loras: Vec<_> = [4, 8, 16].iter().zip(0..).map(|(rank, seed)| adapter(&layers, *rank, seed)).collect();
    let before = hash(&pipeline);
    let text = PromptEmbeds {
        prompt: Tensor::ones([1, 4, 96], &Device::flex()),
        pooled: Tensor::ones([1, 96], &Device::flex()),
    };
    let made = |adapters: Vec<Adapters>| {
        let noise = pipeline.start_noise(3, 16, 16);
        let request = Request { adapters, ..Request::new(text.clone(), noise, vec![3], 1) };
        pipeline.generate(&request, &mut |_| ()).unwrap().into_data()
    };
    let plain = made(vec![]);
    let resident = || memory::usage(&Device::flex()).resident as f64;
    let mut warm = 0.0;
    for number in 0..switches {
        let worn = loras[number % 3].adapters(1.0 - 0.1 * (number % 7) as f64);
        let with = made(vec![worn]);
        assert!(number > 20 || with != plain, "it has an effect");
        if number == switches / 10 {
            warm = resident();
        }
    }
    let grown = resident() / warm - 1.0;
    say(&format!("{switches} switches: memory grew by {:.2} % after the first tenth", 100.0 * grown));
    // Other tests run in this process at the same time, unless this one is run by itself and for long.
    assert!(switches < 10_000 || grown < 0.01, "memory grew by {:.2} %", 100.0 * grown);
    assert_eq!(hash(&pipeline), before, "after {switches} switches");
    assert_eq!(made(vec![]), plain);
}

fn say(text: &str) {
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Converts seconds to their median and 99th percentile in milliseconds.
fn milliseconds(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * share) as usize];
    format!("{:.3} ms (p99 {:.3})", at(0.5), at(0.99))
}

fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    times.push(started.elapsed().as_secs_f64());
    result
}

/// The best time in seconds of a network call for 8 images, for each way of attaching adapters.
fn batches(session: &mut Session, loras: &[Lora], side: usize) -> [f64; 3] {
    let images = |seed: u64| Images {
        prompts: vec!["a red apple".into()],
        seeds: vec![seed],
        width: side,
        height: side,
        strength: 1.0,
        sampling: SamplingOptions { steps: Some(12), ..SamplingOptions::default() },
        ..Images::default()
    };
    let none = session.wear([]).unwrap();
    let one = session.wear([(&loras[0], 1.0)]).unwrap();
    let mixed: Vec<_> = loras.iter().map(|lora| session.wear([(lora, 1.0)]).unwrap()).collect();
    let worn = [vec![none; 8], vec![one; 8], mixed];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..3 {
        for (best, worn) in best.iter_mut().zip(&worn) {
            let mut all: Vec<_> =
                worn.iter().zip(0..).map(|(worn, seed)| session.begin(&images(seed), worn).unwrap()).collect();
            for _ in 0..12 {
                let started = Instant::now();
                session.advance(&mut all.iter_mut().collect::<Vec<_>>()).unwrap();
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
    }
    best
}

/// Time that the pipeline has taken until now: to start images, to denoise, to decode.
fn pipeline_seconds(service: &Service) -> f64 {
    let metrics = service.metrics();
    let of = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    ["begin", "step", "decode"].iter().map(|what| of(&format!("kiln_{what}_seconds_sum")).unwrap()).sum()
}

/// Not a test: measures switching. `cargo test --release --test serve switching -- --ignored --nocapture`
#[test]
#[ignore = "it measures"]
fn measure() {
    let folder = tempfile::tempdir().unwrap();
    adapters(&folder.path().join("loras"), &[16; 8]);
    let mut session = Session::open(root(NANO).to_str().unwrap(), &Device::flex()).unwrap().keeping_text_encoders();
    session.load().unwrap();
    let mut reads = Vec::new();
    let loras: Vec<_> = (0..8)
        .map(|number| {
            let path = folder.path().join(format!("loras/a{number}.safetensors"));
            timed(&mut reads, || session.read_adapter(&path).unwrap())
        })
        .collect();
    say(&format!("read an adapter of rank 16 from its file: {}", milliseconds(reads)));
    let mut wears = Vec::new();
    for number in 0..10_000 {
        timed(&mut wears, || session.wear([(&loras[number % 8], 1.0)]).unwrap());
    }
    say(&format!("put on another one: {}", milliseconds(wears)));
    for side in [32, 64] {
        let [none, same, mixed] = batches(&mut session, &loras, side).map(|seconds| 1e3 * seconds);
        say(&format!(
            "8 images of {side} x {side}, a step: {none:.2} ms without adapters, {same:.2} with one, {mixed:.2} with 8 ({:.2} and \
             {:.2} of those)",
            mixed / none,
            mixed / same
        ));
    }
    drop(session);

    let mut config = config(&folder.path().join("state"));
    config.loras = vec![folder.path().join("loras")];
    let service = start(config);
    service.loras();
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut own = Vec::new();
    for number in 0..300_usize {
        let name = format!("a{}", number % 8);
        let jobs = [vec![], vec![("a0", 1.0)], vec![(name.as_str(), 1.0)]];
        for (times, loras) in times.iter_mut().zip(&jobs) {
            let job = with_loras(request("a red apple", 1, 1), loras);
            let before = pipeline_seconds(&service);
            let id = timed(times, || {
                let id = submit(&service, job);
                wait(&service, id);
                id
            });
            assert!(service.image(id, LOCAL, 0).is_ok());
            own.push(times[number] - (pipeline_seconds(&service) - before));
        }
    }
    say(&format!("of a job, beside the pipeline: {}", milliseconds(own)));
    let [none, same, other] = times.map(milliseconds);
    say(&format!(
        "a job of one step, from its submission to its image on disk: {none} without, {same} with the adapter before, {other} with another"
    ));
    for line in service.metrics().lines().filter(|line| line.contains("_sum ") || line.contains("_count ")) {
        say(line);
    }
}
