//! The configurations for cards fit them, and their comments match the plan: for FLUX.1-dev's and Stable Diffusion 1.5's own
//! layers, whose files are written with headers only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use kiln::{
    memory::Level,
    training::{Silent, TrainConfig, dry_run},
};
use serde_json::json;

use crate::support::full_size::{flux_dev, source, stable_diffusion};

const GIB: f64 = (1u64 << 30) as f64;

/// How a model that a configuration names is made.
type Make = fn(&Path);

/// The models that configurations name.
const MODELS: [(&str, Make); 5] = [
    ("black-forest-labs/FLUX.1-dev", |folder| flux_dev(None, folder)),
    ("models/flux-nf4", |folder| flux_dev(Some("nf4"), folder)),
    ("models/flux-int8", |folder| flux_dev(Some("int8"), folder)),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", |folder| stable_diffusion(false, folder)),
    ("timbrooks/instruct-pix2pix", |folder| stable_diffusion(true, folder)),
];

/// The configuration and the gigabytes of its card.
const CARDS: [(&str, f64); 9] = [
    ("flux_lora_8gb", 8.0),
    ("flux_lora_12gb", 12.0),
    ("flux_lora_16gb", 16.0),
    ("flux_lora", 24.0),
    ("flux_lora_48gb", 48.0),
    ("flux_lora_80gb", 80.0),
    ("instruct_pix2pix_8gb", 8.0),
    ("instruct_pix2pix_12gb", 12.0),
    ("instruct_pix2pix_24gb", 24.0),
];

/// Images with captions, and pairs with instructions.
fn datasets(folder: &Path) -> [PathBuf; 2] {
    let [images, pairs] = ["images", "pairs"].map(|name| folder.join(name));
    fs::create_dir(&images).unwrap();
    fs::create_dir(&pairs).unwrap();
    let mut rows = String::new();
    for number in 0..12 {
        image::RgbImage::new(1024, 1024).save(images.join(format!("{number}.png"))).unwrap();
        fs::write(images.join(format!("{number}.txt")), "a cat").unwrap();
        let [original, edited] = ["original", "edited"].map(|side| format!("{number}-{side}.png"));
        for name in [&original, &edited] {
            image::RgbImage::new(512, 512).save(pairs.join(name)).unwrap();
        }
        rows += &format!("{}\n", json!({"original": original, "edited": edited, "instruction": "make it red"}));
    }
    fs::write(pairs.join("metadata.jsonl"), rows).unwrap();
    [images, pairs]
}

#[test]
fn every_configuration_for_a_card_fits_it_and_says_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let [images, pairs] = datasets(folder.path());
    let model = |path: &str| folder.path().join(path.replace('/', "-"));
    MODELS.iter().for_each(|(path, make)| make(&model(path)));
    let mut wrong = Vec::new();
    for (name, gigabytes) in CARDS {
        let file = source(&format!("configs/{name}.toml"));
        let config = TrainConfig::load(&file, &[]).unwrap();
        assert!(MODELS.iter().any(|(path, _)| *path == config.model.path), "{name}: {}", config.model.path);
        let data = if name.starts_with("flux") { &images } else { &pairs };
        // What a driver leaves of the card, less the headroom that `auto` keeps.
        let limit = gigabytes * 0.96 * GIB - GIB;
        // By name: `auto` would also ask what this machine has.
        let planned = |level: &Level| {
            let overrides = [
                format!("model.path={}", model(&config.model.path).display()),
                format!("data.path={}", data.display()),
                format!("data.cache={}", folder.path().join("cache").display()),
                format!("memory.level={}", level.word()),
            ];
            let config = TrainConfig::load(&file, &overrides).unwrap();
            dry_run(&config, &Device::flex(), &mut Silent).unwrap_or_else(|e| panic!("{name}: {e}")).memory
        };
        let plans = Level::ALL.iter().map(planned);
        let plan = plans.into_iter().find(|plan| plan.peak().bytes() as f64 <= limit);
        let plan = plan.unwrap_or_else(|| panic!("{name} fits no card of {gigabytes} GB"));
        let peak = plan.peak();
        let said =
            format!("# Plan: level `{}`, {:.1} GiB ({})", plan.level.word(), peak.bytes() as f64 / GIB, peak.name);
        if !fs::read_to_string(&file).unwrap().lines().any(|line| line == said) {
            wrong.push(format!("{name}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "the plan is another than the comments say:\n{}", wrong.join("\n"));
}
