//! Models of full size whose files have headers, a few bytes, and holes for everything else: enough for a plan.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// A file of the repository.
pub fn source(path: &str) -> PathBuf {
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

/// The tensors of a model, part by part, as a fixture lists them.
fn shapes(fixture: &str) -> Vec<(String, String, Vec<u64>)> {
    let text = fs::read_to_string(source(&format!("tests/fixtures/{fixture}/shapes.txt"))).unwrap();
    let row = |line: &str| {
        let [part, name, shape] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        (part.to_string(), name.to_string(), shape.split(',').map(|side| side.parse().unwrap()).collect())
    };
    text.lines().filter(|line| !line.starts_with('#')).map(row).collect()
}

/// Writes a model folder: `parts` with the configurations of a fixture, changed by `change`, and the rest of a tiny model.
fn write(folder: &Path, fixture: &str, parts: BTreeMap<String, Sparse>, tiny: &str, change: &dyn Fn(&str, &mut Value)) {
    for (part, file) in &parts {
        let at = folder.join(part);
        fs::create_dir_all(&at).unwrap();
        let text = fs::read_to_string(source(&format!("tests/fixtures/{fixture}/{part}.json"))).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(part, &mut config);
        fs::write(at.join("config.json"), config.to_string()).unwrap();
        let name = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        file.write(&at.join(format!("{name}.safetensors")));
    }
    let tiny = source(tiny);
    for entry in fs::read_dir(&tiny).unwrap().map(|entry| entry.unwrap().path()) {
        let to = folder.join(entry.file_name().unwrap());
        if entry.is_file() {
            fs::copy(&entry, to).unwrap();
        } else if !to.exists() {
            fs::create_dir_all(&to).unwrap();
            for file in fs::read_dir(entry).unwrap().map(|file| file.unwrap()) {
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
}

/// FLUX.1-dev with its weights in bf16, or quantized as `kiln quantize --text-encoder` does it.
pub fn flux_dev(to: Option<&str>, folder: &Path) {
    let mut parts: BTreeMap<String, Sparse> = BTreeMap::new();
    for (part, name, shape) in shapes("flux-dev") {
        let in_block = name.contains("transformer_blocks.")
            || (name.starts_with("encoder.block.") && !name.contains("relative") && !name.contains(".wo."));
        let file = parts.entry(part).or_default();
        match to {
            Some("nf4") if in_block && shape.len() == 2 => file.add_nf4(&name, &shape),
            Some("int8") if in_block && shape.len() == 2 => file.add_int8(&name, &shape),
            _ => file.add(name, "BF16", &shape),
        }
    }
    write(folder, "flux-dev", parts, "tests/fixtures/tiny-flux", &|part, config| {
        if let (Some(to), true) = (to, ["transformer", "text_encoder_2"].contains(&part)) {
            let bits = if to == "nf4" { "load_in_4bit" } else { "load_in_8bit" };
            config["quantization_config"] = json!({"quant_method": "bitsandbytes", bits: true,
                "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true});
        }
    });
}

/// Stable Diffusion 1.5 in f32; one that `edits` reads the original beside the noise.
pub fn stable_diffusion(edits: bool, folder: &Path) {
    let mut parts: BTreeMap<String, Sparse> = BTreeMap::new();
    for (part, name, mut shape) in shapes("sd-1.5") {
        if edits && part == "unet" && name == "conv_in.weight" {
            shape[1] = 8;
        }
        parts.entry(part).or_default().add(name, "F32", &shape);
    }
    write(folder, "sd-1.5", parts, "tests/fixtures/tiny-sd", &|part, config| {
        if edits && part == "unet" {
            config["in_channels"] = json!(8);
        }
    });
    if edits {
        let path = folder.join("model_index.json");
        let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        index["_class_name"] = json!("StableDiffusionInstructPix2PixPipeline");
        fs::write(path, index.to_string()).unwrap();
    }
}
