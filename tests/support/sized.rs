//! Model folders of a size that is chosen, with weights that mean nothing: of what they take, weights and activations are the most, as of
//! models of real size, and all is done in seconds.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device};
use kiln::{
    bench,
    generation::{self, GenerateRequest, SamplingOptions},
    lending::Residence::Streamed,
    memory::{Level, LevelChoice, MemoryConfig, Plan},
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        flux::{FluxConfig, FluxTransformer},
        text::{T5Config, T5Encoder},
        unet::{UNet, UNetConfig},
        vae::{AutoencoderKl, VaeConfig},
    },
    rng::Seed,
    training::{self, Silent, TrainConfig},
    weights::{TensorBytes, Weights, write_tensors},
};
use serde_json::{Value, json};

use super::program::{TINY_FLUX, copy};

/// A tensor of small values; whoever writes many of them holds one at a time.
struct Numbers(Vec<usize>);

impl TensorBytes for Numbers {
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        let count = self.0.iter().product::<usize>();
        let values = (0..count).map(|i| ((i * 31 % 97) as f32 - 48.0) * 1e-3);
        values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
    }
}

/// Writes a part of a model: its configuration, changed, and weights of the shapes that `take` asks for.
fn write<C: serde::de::DeserializeOwned>(folder: &Path, changes: Value, take: impl FnOnce(&Weights, C)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let Value::Object(changes) = changes else { panic!("{changes}") };
    changes.into_iter().for_each(|(key, value)| config[key] = value);
    fs::write(&path, config.to_string()).unwrap();
    let weights = Weights::random(Seed(0), &Device::flex(), None);
    take(&weights.unread(), serde_json::from_value(config).unwrap());
    let all: BTreeMap<_, _> = weights.taken().into_iter().map(|(name, shape)| (name, Numbers(shape))).collect();
    let name = if folder.join("model.safetensors").is_file() { "model" } else { "diffusion_pytorch_model" };
    write_tensors(folder.join(name).with_extension("safetensors"), &all, &BTreeMap::new()).unwrap();
}

/// The widths of both text encoders.
pub const TEXT: usize = 512;

fn write_clip(folder: &Path) {
    let changes =
        json!({"hidden_size": TEXT, "intermediate_size": 4 * TEXT, "projection_dim": TEXT, "num_hidden_layers": 4});
    write(folder, changes, |weights, config: ClipTextConfig| drop(ClipTextModel::load(weights, config)));
}

fn write_vae(folder: &Path) {
    let changes = json!({"block_out_channels": [32, 64, 128, 128]});
    write(folder, changes, |weights, config: VaeConfig| drop(AutoencoderKl::load(weights, config, Streamed)));
}

/// A FLUX.1 with two double and three single blocks, each of 230 and 100 MB in f32, and a T5 of 340.
pub fn write_flux(folder: &Path) {
    copy("tests/fixtures/tiny-flux", folder);
    let changes = json!({"num_attention_heads": 10, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
        "num_layers": 2, "num_single_layers": 3, "joint_attention_dim": 2 * TEXT, "pooled_projection_dim": TEXT});
    write(&folder.join("transformer"), changes, |weights, config: FluxConfig| {
        drop(FluxTransformer::load(weights, config, Streamed));
    });
    let changes = json!({"d_model": 2 * TEXT, "d_ff": 4 * TEXT, "d_kv": 64, "num_heads": 16, "num_layers": 8});
    write(&folder.join("text_encoder_2"), changes, |weights, config: T5Config| {
        drop(T5Encoder::load(weights, config, Streamed));
    });
    write_clip(&folder.join("text_encoder"));
    write_vae(&folder.join("vae"));
}

/// A Stable Diffusion whose UNet has the layers of version 1.5, at half their width: 860 MB in f32.
pub fn write_stable_diffusion(folder: &Path) {
    copy("tests/fixtures/tiny-sd", folder);
    let changes = json!({"block_out_channels": [160, 320, 640, 640], "attention_head_dim": 8, "layers_per_block": 2,
        "norm_num_groups": 32, "cross_attention_dim": TEXT});
    write(&folder.join("unet"), changes, |weights, config: UNetConfig| drop(UNet::load(weights, config, Streamed)));
    write_clip(&folder.join("text_encoder"));
    write_vae(&folder.join("vae"));
}

/// Work whose memory is planned and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An image of FLUX.1.
    Flux,
    /// One of Stable Diffusion, with guidance.
    StableDiffusion,
    /// Training a LoRA on FLUX.1.
    FluxLora,
}

/// What work has taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub plan: Plan,
    /// The most that was in use beside what there was before, in bytes.
    pub peak: u64,
    pub seconds: f64,
}

impl Taken {
    /// What the plan says of the CPU, in bytes.
    pub fn planned(&self) -> u64 {
        self.plan.clone().on_cpu().peak().bytes()
    }

    /// By what share the plan is above the peak.
    pub fn off(&self) -> f64 {
        self.planned() as f64 / self.peak as f64 - 1.0
    }
}

impl Work {
    pub const ALL: [Self; 3] = [Self::Flux, Self::StableDiffusion, Self::FluxLora];

    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flux => "FLUX.1, an image",
            Self::StableDiffusion => "Stable Diffusion, an image",
            Self::FluxLora => "FLUX.1, training a LoRA",
        }
    }

    /// Plans and does it at a level, with images of this size, in a folder of its own; the models lie in `models`.
    pub fn take(self, models: &Models, side: usize, level: Level) -> Taken {
        let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
        let memory = MemoryConfig { level: LevelChoice::Fixed(level), ..MemoryConfig::default() };
        let measure = |plan: Plan, work: &dyn Fn()| {
            let ((), measured) = bench::watched("work", &device, work);
            Taken { plan, peak: measured.taken(), seconds: measured.seconds }
        };
        if self == Self::FluxLora {
            let data = folder.path().join("data");
            images(&data, side);
            let settings = [
                "run.name=run".into(),
                format!("run.output={}", folder.path().join("runs").display()),
                format!("model.path={}", models.flux.display()),
                format!("data.path={}", data.display()),
                format!("data.cache={}", folder.path().join("cache").display()),
                format!("data.resolution={side}"),
                "data.batch_size=1".into(),
                "data.validation_split=0".into(),
                "lora.rank=16".into(),
                "training.max_steps=2".into(),
                "validation.prompts=[]".into(),
                format!("memory.level={}", level.word()),
            ];
            let config = TrainConfig::load(TINY_FLUX, &settings).unwrap();
            let plan = training::dry_run(&config, &device, &mut Silent).unwrap().memory;
            return measure(plan, &|| drop(training::train(&config, None, &device, &mut Silent).unwrap()));
        }
        let model = if self == Self::Flux { &models.flux } else { &models.stable_diffusion };
        let request = GenerateRequest {
            model: model.to_str().unwrap().into(),
            prompts: vec!["a red circle on white".into()],
            width: Some(side),
            height: Some(side),
            count: 1,
            strength: 1.0,
            sampling: SamplingOptions { steps: Some(2), ..SamplingOptions::default() },
            output: folder.path().join("images"),
            memory,
            ..GenerateRequest::default()
        };
        let plan = generation::plan(&request, &device).unwrap();
        measure(plan, &|| drop(generation::generate(&request, &device).unwrap()))
    }
}

/// Images with captions, to train on.
pub fn images(folder: &Path, side: usize) {
    fs::create_dir_all(folder).unwrap();
    for number in 0..2 {
        let side = side as u32;
        image::RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, number]))
            .save(folder.join(format!("{number}.png")))
            .unwrap();
        fs::write(folder.join(format!("{number}.txt")), "a red circle").unwrap();
    }
}

/// Where the models are.
pub struct Models {
    pub flux: PathBuf,
    pub stable_diffusion: PathBuf,
    _folder: tempfile::TempDir,
}

impl Models {
    /// Writes them.
    pub fn write() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [flux, stable_diffusion] = ["flux", "stable-diffusion"].map(|name| folder.path().join(name));
        write_flux(&flux);
        write_stable_diffusion(&stable_diffusion);
        Self { flux, stable_diffusion, _folder: folder }
    }
}
