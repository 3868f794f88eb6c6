//! The configurations for people's cards fit them, and their comments say what the plan says: of FLUX.1-dev's own layers, whose
//! files are written with headers only.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use kiln::{
    memory::Level,
    training::{Silent, TrainConfig, dry_run},
};
use serde_json::{Value, json};

const GIB: f64 = (1u64 << 30) as f64;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A safetensors file with a header, a few bytes, and holes for everything else.
#[derive(Default)]
struct Sparse {
    header: BTreeMap<String, Value>,
    bytes: Vec<(u64, Vec<u8>)>,
    length: u64,
}

impl Sparse {
    fn add(&mut self, name: String, dtype: &str, shape: &[u64]) {
        let size = match dtype {
            "F32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        let length = size * shape.iter().product::<u64>();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [self.length, self.length + length]});
        assert!(self.header.insert(name, entry).is_none());
        self.length += length;
    }

    /// As bitsandbytes stores the weight of a linear layer: blocks of 64, with double quantization.
    fn add_nf4(&mut self, name: &str, shape: &[u64]) {
        let values: u64 = shape.iter().product();
        let blocks = values / 64;
        let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape,
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25})
        .to_string();
        self.add(name.to_string(), "U8", &[values / 2, 1]);
        self.add(format!("{name}.absmax"), "U8", &[blocks]);
        self.add(format!("{name}.nested_absmax"), "F32", &[blocks.div_ceil(256)]);
        self.add(format!("{name}.nested_quant_map"), "F32", &[256]);
        self.add(format!("{name}.quant_map"), "F32", &[16]);
        self.bytes.push((self.length, state.clone().into_bytes()));
        self.add(format!("{name}.quant_state.bitsandbytes__nf4"), "U8", &[state.len() as u64]);
    }

    /// As bitsandbytes stores the weight of a linear layer in eight bits.
    fn add_int8(&mut self, name: &str, shape: &[u64]) {
        let layer = name.strip_suffix(".weight").unwrap();
        self.add(name.to_string(), "I8", shape);
        self.add(format!("{layer}.SCB"), "F32", &shape[..1]);
        self.add(format!("{name}_format"), "U8", &[]);
    }

    fn write(&self, path: &Path) {
        let mut header = serde_json::to_vec(&self.header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let start = 8 + header.len() as u64;
        let mut file = File::create(path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        for (at, bytes) in &self.bytes {
            file.seek(SeekFrom::Start(start + at)).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.set_len(start + self.length).unwrap();
    }
}

/// FLUX.1-dev with its weights in bf16, or quantized as `kiln quantize --text-encoder` does it.
fn flux_dev(to: Option<&str>, folder: &Path) {
    let shapes = fs::read_to_string(source("tests/fixtures/flux-dev/shapes.txt")).unwrap();
    let mut parts: BTreeMap<&str, Sparse> = BTreeMap::new();
    for line in shapes.lines().filter(|line| !line.starts_with('#')) {
        let [part, name, shape] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let shape: Vec<u64> = shape.split(',').map(|side| side.parse().unwrap()).collect();
        let in_block = name.contains("transformer_blocks.")
            || (name.starts_with("encoder.block.") && !name.contains("relative") && !name.contains(".wo."));
        let file = parts.entry(part).or_default();
        match to {
            Some("nf4") if in_block && shape.len() == 2 => file.add_nf4(name, &shape),
            Some("int8") if in_block && shape.len() == 2 => file.add_int8(name, &shape),
            _ => file.add(name.to_string(), "BF16", &shape),
        }
    }
    for (part, file) in parts {
        let at = folder.join(part);
        fs::create_dir_all(&at).unwrap();
        let text = fs::read_to_string(source(&format!("tests/fixtures/flux-dev/{part}.json"))).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        if let (Some(to), true) = (to, ["transformer", "text_encoder_2"].contains(&part)) {
            let bits = if to == "nf4" { "load_in_4bit" } else { "load_in_8bit" };
            config["quantization_config"] = json!({"quant_method": "bitsandbytes", bits: true,
                "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true});
        }
        fs::write(at.join("config.json"), config.to_string()).unwrap();
        let name = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        file.write(&at.join(format!("{name}.safetensors")));
    }
    let tiny = source("checkpoints/tiny-flux");
    for part in ["tokenizer", "tokenizer_2", "scheduler"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        for file in fs::read_dir(tiny.join(part)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.join(part).join(file.file_name())).unwrap();
        }
    }
    fs::copy(tiny.join("model_index.json"), folder.join("model_index.json")).unwrap();
}

/// The configuration, the model that it names, and the gigabytes of its card.
const CARDS: [(&str, Option<&str>, f64); 6] = [
    ("flux_lora_8gb", Some("nf4"), 8.0),
    ("flux_lora_12gb", Some("nf4"), 12.0),
    ("flux_lora_16gb", Some("int8"), 16.0),
    ("flux_lora", Some("int8"), 24.0),
    ("flux_lora_48gb", None, 48.0),
    ("flux_lora_80gb", None, 80.0),
];

#[test]
fn every_configuration_for_a_card_fits_it_and_says_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let (images, model) = (folder.path().join("images"), |to: Option<&str>| folder.path().join(to.unwrap_or("bf16")));
    fs::create_dir(&images).unwrap();
    for number in 0..12 {
        image::RgbImage::new(1024, 1024).save(images.join(format!("{number}.png"))).unwrap();
        fs::write(images.join(format!("{number}.txt")), "a cat").unwrap();
    }
    [None, Some("nf4"), Some("int8")].into_iter().for_each(|to| flux_dev(to, &model(to)));
    let mut wrong = Vec::new();
    for (name, to, gigabytes) in CARDS {
        let file = source(&format!("configs/{name}.toml"));
        let config = TrainConfig::load(&file, &[]).unwrap();
        let expected = to.map_or("black-forest-labs/FLUX.1-dev".to_string(), |to| format!("models/flux-{to}"));
        assert_eq!(config.model.path, expected, "{name}");
        // What a driver leaves of the card, less the headroom that `auto` keeps.
        let limit = gigabytes * 0.96 * GIB - GIB;
        // By name: `auto` would also ask what this machine has.
        let planned = |level: &Level| {
            let overrides = [
                format!("model.path={}", model(to).display()),
                format!("data.path={}", images.display()),
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
