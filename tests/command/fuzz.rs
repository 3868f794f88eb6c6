//! A short fuzz of every reader: files of a small corpus, damaged by a seeded mutator. A reader may refuse what it gets, with an
//! error; it may not panic, take the process down, or take more than seconds.
//!
//! `KILN_FUZZ=100 cargo test --release --test command fuzz` runs a hundred times as many.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use burn::tensor::Device;
use kiln::{
    config,
    data::{DataConfig, DatasetKind, picture_size, prepare, read_picture},
    generation::Choices,
    hub,
    lora::{self, Lora},
    models::{
        clip::{ClipConfig, ClipImageProcessor},
        flux::{FluxConfig, FluxTransformer},
        text::{ClipTextModel, T5Encoder},
        unet::UNet,
        vae::AutoencoderKl,
    },
    panics::is_guarded,
    schedulers::{FlowMatchEuler, SchedulerConfig},
    tokenizer::Tokenizers,
    training::TrainConfig,
    weights::TensorFile,
};

use crate::support::{
    encoders::{Fake, silent},
    program::{copy, workshop},
};

/// SplitMix64 (Steele et al. 2014).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

const WORDS: [&str; 14] = [
    "0",
    "-1",
    "1e308",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "0.5",
    "null",
    "true",
    "[]",
    "{}",
    "\"x\"",
    "\"\"",
];
const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// One to three changes of `bytes`.
fn damaged(bytes: &[u8], draws: &mut Draws) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + draws.below(3) {
        let at = draws.below(bytes.len());
        let end = (at + 1 + draws.below(16)).min(bytes.len());
        match draws.below(8) {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << draws.below(8),
            1 => bytes[at] = *draws.of(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\n']),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, part));
            }
            5 => {
                let number = draws.of(&NUMBERS).to_le_bytes();
                let count = draws.of(&[2, 4, 8]).min(&(bytes.len() - at)).to_owned();
                bytes[at..at + count].copy_from_slice(&number[..count]);
            }
            _ => {
                // A number or a word of text, from here on, becomes another.
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
                let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|start| at + start) else {
                    continue;
                };
                let length = bytes[start..].iter().position(|byte| !is_word(byte)).unwrap_or(bytes.len() - start);
                let word = draws.of(&WORDS).bytes();
                drop(bytes.splice(start..start + length, word));
            }
        }
    }
    bytes
}

/// A safetensors file whose header is damaged as text, with the correct length.
fn damaged_header(bytes: &[u8], draws: &mut Draws) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = damaged(&bytes[8..8 + length], draws);
    [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()
}

/// Damages the file `name` in `folder` `rounds` times, and passes each version to `read`.
pub fn fuzz(rounds: u64, folder: &Path, name: &str, read: impl Fn(&Path)) {
    let rounds = rounds * std::env::var("KILN_FUZZ").map_or(1, |times| times.parse::<u64>().unwrap());
    // Panics that the readers catch themselves are not reported, as in the program.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_guarded() {
                usual(panic)
            }
        }));
    });
    let path = folder.join(name);
    let whole = fs::read(&path).unwrap();
    let mut failures = Vec::new();
    for seed in 0..rounds {
        let mut draws = Draws(seed ^ (whole.len() as u64) << 32);
        let bytes = match name.ends_with(".safetensors") && seed % 2 == 0 {
            true => damaged_header(&whole, &mut draws),
            false => damaged(&whole, &mut draws),
        };
        fs::write(&path, &bytes).unwrap();
        let started = Instant::now();
        let panicked = catch_unwind(AssertUnwindSafe(|| read(&path))).is_err();
        if panicked || started.elapsed() > Duration::from_secs(5) {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{seed}-{}", name.replace('/', "-")));
            fs::write(&kept, &bytes).unwrap();
            failures.push(format!("{}: panicked: {panicked}, {:?}", kept.display(), started.elapsed()));
        }
    }
    fs::write(&path, whole).unwrap();
    assert!(failures.is_empty(), "{} of {rounds}:\n{}", failures.len(), failures.join("\n"));
}

/// A copy of a fixture, to be damaged.
pub fn corpus(name: &str, of: &str) -> PathBuf {
    let folder = workshop(&format!("fuzz-{name}"));
    copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(of), &folder);
    folder
}

#[test]
fn adapters_and_other_tensor_files() {
    for (name, of) in
        [("flux-lora", "tests/fixtures/flux_golden/lora_r4_a4"), ("unet-lora", "tests/fixtures/sd_golden/lora_r4_a4")]
    {
        let folder = corpus(name, of);
        let names: Vec<_> = fs::read_dir(&folder).unwrap().flatten().map(|file| file.file_name()).collect();
        for name in names {
            fuzz(150, &folder, name.to_str().unwrap(), |path| {
                if let Ok(file) = TensorFile::open(path) {
                    file.names().iter().for_each(|name| drop(file.read(name)));
                }
                _ = lora::inspect(path).map(|inspection| inspection.to_string());
                _ = Lora::read(path);
            });
        }
    }
}

#[test]
fn the_settings_of_an_adapter() {
    let folder = corpus("peft", "tests/fixtures/adapters/flux/peft_lokr");
    fuzz(400, &folder, "adapter_config.json", |_| drop(Lora::read(&folder)));
}

#[test]
fn gguf() {
    let folder = workshop("fuzz-gguf");
    let name = "quantized.gguf";
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name), folder.join(name)).unwrap();
    fuzz(400, &folder, name, |path| {
        _ = lora::inspect(path);
        if let Ok(file) = TensorFile::open(path) {
            file.names().iter().for_each(|name| drop(file.read(name)));
        }
    });
}

#[test]
fn tokenizers() {
    for (name, of, length) in [("clip", "tests/fixtures/sd", 0), ("t5", "tests/fixtures/flux", 64)] {
        let folder = workshop(&format!("fuzz-tokenizer-{name}"));
        for part in ["tokenizer", "tokenizer_2"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join(part);
            if from.is_dir() {
                copy(from, folder.join(part));
                let encoder = part.replace("tokenizer", "text_encoder");
                fs::create_dir_all(folder.join(&encoder)).unwrap();
                let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join(&encoder).join("config.json");
                fs::copy(config, folder.join(encoder).join("config.json")).unwrap();
            }
        }
        let part = if length == 0 { "tokenizer" } else { "tokenizer_2" };
        let read = |_: &Path| {
            if let Ok(tokenizers) = Tokenizers::open(&folder, length) {
                for prompt in ["", "a red circle on white", "ÀÉ 猫 \u{fdfa} \0 <|endoftext|></s>"] {
                    _ = tokenizers.tokenize(prompt);
                }
                _ = tokenizers.shortened(["long ".repeat(300).as_str()]);
            }
        };
        for (file, rounds) in [("tokenizer.json", 60), ("tokenizer_config.json", 30), ("special_tokens_map.json", 20)] {
            fuzz(rounds, &folder, &format!("{part}/{file}"), read);
        }
        if length == 0 {
            fs::remove_file(folder.join("tokenizer/tokenizer.json")).unwrap();
            ["vocab.json", "merges.txt"].iter().for_each(|file| fuzz(40, &folder, &format!("tokenizer/{file}"), read));
        }
    }
}

#[test]
fn schedulers() {
    for (name, of) in [("flow", "tests/fixtures/flux/scheduler"), ("betas", "tests/fixtures/ip2p/scheduler")] {
        let folder = corpus(name, of);
        fuzz(1500, &folder, "scheduler_config.json", |_| {
            if let Ok(scheduler) = FlowMatchEuler::open(&folder) {
                _ = scheduler.run(4, 256, 0.5);
                _ = scheduler.training_sigmas();
            }
            if let Ok(config) = SchedulerConfig::open(&folder) {
                _ = config.scheduler(4);
                _ = config.noise_schedule();
            }
        });
    }
}

#[test]
fn models_by_their_configurations() {
    let device = Device::flex();
    type Read = fn(&Path, &Device);
    let parts: [(&str, &str, u64, Read); 5] = [
        ("transformer", "tests/fixtures/flux", 60, |folder, device| {
            _ = FluxConfig::open(folder);
            _ = FluxTransformer::open(folder, device, None);
        }),
        ("text_encoder", "tests/fixtures/flux", 60, |folder, device| _ = ClipTextModel::open(folder, device, None)),
        ("text_encoder_2", "tests/fixtures/flux", 60, |folder, device| _ = T5Encoder::open(folder, device, None)),
        ("vae", "tests/fixtures/flux", 60, |folder, device| _ = AutoencoderKl::open(folder, device, None)),
        ("unet", "tests/fixtures/ip2p", 60, |folder, device| _ = UNet::open(folder, device, None)),
    ];
    for (part, of, rounds, read) in parts {
        let folder = corpus(&format!("part-{part}"), &format!("{of}/{part}"));
        fuzz(rounds, &folder, "config.json", |_| read(&folder, &device));
    }
    let folder = corpus("whole-clip", "tests/fixtures/clip");
    fuzz(300, &folder, "config.json", |_| drop(ClipConfig::open(&folder)));
    fuzz(300, &folder, "preprocessor_config.json", |_| drop(ClipImageProcessor::open(&folder, 32)));
}

#[test]
fn folders_of_models() {
    let folder = corpus("folder", "tests/fixtures/flux_schnell_bf16");
    let model = folder.to_str().unwrap();
    for (file, rounds) in
        [("model_index.json", 300), ("transformer/diffusion_pytorch_model.safetensors.index.json", 300)]
    {
        fuzz(rounds, &folder, file, |_| drop(hub::resolve(model)));
    }
}

#[test]
fn images() {
    let folder = corpus("images", "tests/fixtures/fuzz");
    let names: Vec<_> = fs::read_dir(&folder).unwrap().flatten().map(|file| file.file_name()).collect();
    let names: Vec<_> = names.iter().filter_map(|name| name.to_str()).filter(|name| !name.ends_with(".py")).collect();
    assert!(names.len() >= 8);
    for name in names {
        fuzz(250, &folder, name, |path| {
            _ = picture_size(path);
            _ = read_picture(path);
        });
    }
}

/// Prepares a folder with trivial encoders.
fn prepared(folder: &Path, kind: DatasetKind) {
    let config =
        DataConfig { path: folder.into(), resolution: 64, cache: Some(folder.join(".cache")), ..Default::default() };
    _ = prepare(&config, kind, &[], &mut Fake::default(), &silent);
}

#[test]
fn tables_of_edits() {
    let folder = corpus("tables", "tests/fixtures/tables");
    let names: Vec<_> = fs::read_dir(&folder).unwrap().flatten().map(|file| file.file_name()).collect();
    for name in names.iter().filter_map(|name| name.to_str()).filter(|name| name.ends_with(".parquet")) {
        let alone = workshop("fuzz-table");
        fs::copy(folder.join(name), alone.join(name)).unwrap();
        fuzz(100, &alone, name, |_| {
            prepared(&alone, DatasetKind::Edits);
            prepared(&alone, DatasetKind::Captions);
        });
    }
}

#[test]
fn metadata() {
    let folder = workshop("fuzz-metadata");
    let image = image::RgbImage::from_pixel(64, 64, image::Rgb([9, 9, 9]));
    ["a.png", "b.png"].iter().for_each(|name| image.save(folder.join(name)).unwrap());
    for (file, text) in [
        (
            "metadata.jsonl",
            "{\"file_name\": \"a.png\", \"text\": \"a 1\"}\n{\"file_name\": \"b.png\", \"caption\": \"é 2\"}\n",
        ),
        ("metadata.csv", "file_name,text,other\na.png,\"a, 1\",2\nb.png,é 2,\n"),
    ] {
        fs::write(folder.join(file), text).unwrap();
        fuzz(300, &folder, file, |_| prepared(&folder, DatasetKind::Captions));
        fs::remove_file(folder.join(file)).unwrap();
    }
    // Texts beside images, and the index of what is already encoded.
    fs::write(folder.join("a.txt"), "a cat, \u{e9}\r\n on a mat").unwrap();
    fs::write(folder.join("b.txt"), b"\xff\xfea\0 \0b\0").unwrap();
    ["a.txt", "b.txt"].iter().for_each(|file| fuzz(100, &folder, file, |_| prepared(&folder, DatasetKind::Captions)));
    prepared(&folder, DatasetKind::Captions);
    let cache = folder.join(".cache");
    let entries = fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    for file in entries.map(|path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_string()) {
        fuzz(200, &folder, &file, |_| prepared(&folder, DatasetKind::Captions));
    }
}

#[test]
fn the_papers_own_layout_of_edits() {
    let folder = workshop("fuzz-paper");
    fs::create_dir_all(folder.join("0001")).unwrap();
    let image = image::RgbImage::from_pixel(64, 64, image::Rgb([9, 9, 9]));
    ["7_0.jpg", "7_1.jpg"].iter().for_each(|name| image.save(folder.join("0001").join(name)).unwrap());
    fs::write(folder.join("0001/prompt.json"), "{\"edit\": \"make it 1\", \"input\": \"a\", \"output\": \"b\"}")
        .unwrap();
    fs::write(folder.join("seeds.json"), "[[\"0001\", [\"7\"]]]").unwrap();
    ["0001/prompt.json", "seeds.json"].iter().for_each(|file| {
        fuzz(200, &folder, file, |_| prepared(&folder, DatasetKind::Edits));
    });
}

#[test]
fn configurations() {
    let folder = corpus("configs", "configs");
    for file in ["quickstart.toml", "quickstart_edit.toml"] {
        fuzz(500, &folder, file, |path| drop(TrainConfig::load(path, &[])));
    }
    fs::write(folder.join("choices.toml"), "models = ['a', 'b']\nprompts = ['c']\nstrengths = [0.5, 1]\n").unwrap();
    fuzz(300, &folder, "choices.toml", |path| drop(config::load::<Choices>(path, &[])));
}
