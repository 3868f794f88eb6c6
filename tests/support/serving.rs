//! A server without HTTP on the small models, and adapters for them.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    lora::{Denoiser, Format, Lora, LoraConfig, Targets},
    memory::LevelChoice,
    nn::LayerShape,
    pipelines::{FluxPipeline, Pipeline},
    rng::{Purpose, Seed},
    serve::{
        Accepted, Service,
        config::{LOCAL, ModelEntry, ServeConfig},
        job::{Job, JobId, JobRequest, LoraChoice, Status},
    },
    weights::FileDtype,
};

/// FLUX.1 of 64 × 64 pixels.
pub const NANO: &str = "checkpoints/nano-flux";

pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn model(name: &str, path: &str) -> ModelEntry {
    let path = root(path).to_str().unwrap().into();
    ModelEntry { name: name.into(), path, memory: LevelChoice::Fixed(kiln::memory::Level::None) }
}

/// Nano FLUX alone, with its state in a folder.
pub fn config(state: &Path) -> ServeConfig {
    ServeConfig { port: 0, ..ServeConfig::new(state, vec![model("nano", NANO)]) }
}

pub fn start(config: ServeConfig) -> Service {
    Service::start(config, &Device::flex()).unwrap()
}

/// A small image in few steps.
pub fn request(prompt: &str, seed: u64, steps: usize) -> JobRequest {
    JobRequest { seed: Some(seed), steps: Some(steps), width: Some(32), height: Some(32), ..JobRequest::new(prompt) }
}

pub fn with_loras(request: JobRequest, loras: &[(&str, f64)]) -> JobRequest {
    let choice = |(name, scale): &(&str, f64)| LoraChoice { name: (*name).into(), scale: *scale };
    JobRequest { loras: loras.iter().map(choice).collect(), ..request }
}

#[track_caller]
pub fn submit(service: &Service, request: JobRequest) -> JobId {
    let Accepted { id, .. } = service.submit(request, LOCAL, None).unwrap();
    id
}

/// The job once it has ended.
#[track_caller]
pub fn wait(service: &Service, id: JobId) -> Job {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = async { tokio::time::timeout(Duration::from_secs(120), service.wait(id, LOCAL)).await };
    runtime.block_on(ended).expect("the job ends in two minutes").unwrap()
}

/// The PNG files of a job that is to be completed.
#[track_caller]
pub fn images(service: &Service, id: JobId) -> Vec<Vec<u8>> {
    let job = wait(service, id);
    assert_eq!(job.status, Status::Completed, "{:?}", job.error);
    (0..job.images.len()).map(|number| service.image(id, LOCAL, number).unwrap()).collect()
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A metric without labels, by its name.
#[track_caller]
pub fn metric(service: &Service, name: &str) -> f64 {
    let text = service.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
}

/// The layers of a FLUX.1 that can have adapters.
pub fn layers(model: &str) -> Vec<LayerShape> {
    FluxPipeline::open(root(model), &Device::flex(), FloatDType::F32).unwrap().layers()
}

/// An adapter with some effect, different for each seed.
pub fn adapter(layers: &[LayerShape], rank: usize, seed: u64) -> Lora {
    let config = LoraConfig { rank, targets: Targets::Attention, ..LoraConfig::default() };
    let mut lora = Lora::init(&config, Denoiser::Transformer, Seed(seed), layers, &Device::flex()).unwrap();
    for layer in &mut lora.layers {
        let shape = layer.b.dims();
        let values = Seed(seed).named(Purpose::Weights, &layer.name).normal(shape[0] * shape[1]);
        let values: Vec<f32> = values.into_iter().map(|value| 0.1 * value).collect();
        layer.b = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
    }
    lora
}

/// Adapters of these ranks as files `a0`, `a1`, … of a folder.
pub fn adapters(folder: &Path, ranks: &[usize]) {
    std::fs::create_dir_all(folder).unwrap();
    let layers = layers(NANO);
    for (number, rank) in ranks.iter().enumerate() {
        let path = folder.join(format!("a{number}.safetensors"));
        adapter(&layers, *rank, 100 + number as u64).write(path, Format::Diffusers, FileDtype::F32).unwrap();
    }
}
