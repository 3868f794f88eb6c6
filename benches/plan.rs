//! The memory plan: beside the memory that work takes, for models of some hundred MiB on the CPU, and of models of full size.
//!
//! ```text
//! cargo bench --bench plan -- [--only levels|techniques|training] [--sizes 256,512] [--phases]
//! ```
//!
//! `levels` compares the plan with what `kiln generate` and `kiln train` take, at every level. `techniques` has each way to need
//! less memory alone, planned for FLUX.1-dev and Stable Diffusion 1.5 and measured with smaller models of their kinds. `training` is
//! the plan of a LoRA on FLUX.1-dev. Peaks are those of resident memory beside what there was before, after the same work was done
//! once. Results: `benches/results/memory.md`.
#![allow(clippy::disallowed_macros)] // a bench may end when nobody reads its results

#[path = "../tests/support/mod.rs"]
mod support;

use std::{fs, path::Path};

use burn::tensor::{Device, FloatDType};
use clap::{Parser, ValueEnum};
use kiln::{
    bench,
    lending::Residence::{self, Resident, Single, Streamed},
    limits::Limits,
    memory::{self, Level, gib, mib},
    models::text::PromptEmbeds,
    pipelines::{FluxPipeline, Pipeline, Placement, Request, StableDiffusionPipeline},
    training::{Silent, TrainConfig, dry_run},
    weights::{QuantizeOptions, QuantizedTo, quantize_folder},
};
use support::{
    full_size::{flux_dev, source, stable_diffusion},
    sized::{Models, TEXT, Work, images},
};

#[derive(Parser)]
struct Args {
    /// One table instead of all.
    #[arg(long, value_enum)]
    only: Option<Table>,
    /// Both sides of the images of `levels`, in pixels.
    #[arg(long, value_delimiter = ',', default_values_t = [256, 512])]
    sizes: Vec<usize>,
    /// Prints every phase of `levels`, too.
    #[arg(long)]
    phases: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Table {
    Levels,
    Techniques,
    Training,
}

fn main() {
    let args = Args::parse();
    memory::tune_allocator(); // as the program does
    let wanted = |table| args.only.is_none_or(|only| only == table);
    if wanted(Table::Training) {
        training();
    }
    if wanted(Table::Levels) || wanted(Table::Techniques) {
        let models = Models::write();
        if wanted(Table::Techniques) {
            techniques(&models);
        }
        if wanted(Table::Levels) {
            levels(&models, &args);
        }
    }
}

/// Every level, planned and measured.
fn levels(models: &Models, args: &Args) {
    println!("| work | size | level | MiB planned | MiB measured | plan off by | s |\n|---|---|---|---|---|---|---|");
    for work in Work::ALL {
        for (&side, level) in args.sizes.iter().flat_map(|side| Level::ALL.map(|level| (side, level))) {
            if level == Level::None {
                work.take(models, side, level); // what is made once: also the threads' own room for large products
            }
            let taken = work.take(models, side, level);
            let (planned, peak) = (mib(taken.planned()), mib(taken.peak));
            let (name, level, off) = (work.name(), level.word(), 100.0 * taken.off());
            println!(
                "| {name} | {side}² | `{level}` | {planned:.0} | {peak:.0} | {off:+.0} % | {:.1} |",
                taken.seconds
            );
            if args.phases {
                println!("{}", taken.plan);
            }
        }
    }
}

/// A family of models, as its images are made.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Flux,
    StableDiffusion,
}

impl Kind {
    fn open(self, model: &Path, place: Placement, dtype: FloatDType) -> Box<dyn Pipeline> {
        let device = Device::flex();
        match self {
            Self::Flux => Box::new(FluxPipeline::open_as(place, model, &device, dtype).unwrap()),
            Self::StableDiffusion => Box::new(StableDiffusionPipeline::open_as(place, model, &device, dtype).unwrap()),
        }
    }

    /// Rows of an image: with guidance by two predictions where that is usual.
    fn rows(self) -> u64 {
        if self == Self::Flux { 1 } else { 2 }
    }

    fn tokens(self) -> usize {
        if self == Self::Flux { 512 } else { 77 }
    }
}

/// A way to need less memory.
#[derive(Clone, Copy)]
struct Technique {
    place: Placement,
    limits: Limits,
    /// Whether the denoiser is let go of before an image is decoded.
    releases: bool,
}

impl Technique {
    const NONE: Self = Self {
        place: Placement { denoiser: Resident, vae: Resident, text: Resident },
        limits: Limits::NONE,
        releases: false,
    };

    fn of(level: Level) -> Self {
        Self { place: level.into(), limits: level.limits(), releases: level > Level::None }
    }

    fn denoiser(denoiser: Residence) -> Self {
        Self { place: Placement { denoiser, ..Self::NONE.place }, ..Self::NONE }
    }

    fn within(limits: Limits) -> Self {
        Self { limits, ..Self::NONE }
    }

    /// Bytes on the device while an image is denoised and decoded.
    fn planned(self, kind: Kind, model: &Path, side: usize, dtype: FloatDType) -> u64 {
        // Only headers are read.
        let pipeline = kind.open(model, Streamed.into(), dtype);
        let (denoiser, vae, latent) = (pipeline.denoiser_sizes(), pipeline.vae().sizes(), side / 8);
        let vae_kept = vae.kept_at(self.place.vae);
        let row = pipeline.bytes_of_row(latent, latent, kind.tokens(), &self.limits)
            * burn::tensor::DType::from(dtype).size() as u64
            / 4;
        let denoise = denoiser.at(self.place.denoiser) + vae_kept + row * kind.rows();
        let kept = if self.releases { 0 } else { denoiser.kept_at(self.place.denoiser) };
        let image = pipeline.vae().bytes_of_image([side; 2], &self.limits);
        denoise.max(kept + vae_kept.max(vae.largest) + image)
    }

    /// Makes an image.
    fn measure(self, kind: Kind, model: &Path, side: usize) -> Measured {
        let device = Device::flex();
        let open = |place| {
            let mut pipeline = kind.open(model, place, FloatDType::F32);
            pipeline.limit(self.limits);
            pipeline
        };
        let embeds = |number| {
            let width = if kind == Kind::Flux { 2 * TEXT } else { TEXT };
            let [prompt, pooled] = ["prompt", "pooled"].map(|part| format!("{part} {number}"));
            PromptEmbeds {
                prompt: bench::normal(&prompt, [1, kind.tokens(), width], &device, FloatDType::F32),
                pooled: bench::normal(&pooled, [1, TEXT], &device, FloatDType::F32),
            }
        };
        let make = || {
            let mut pipeline = open(self.place);
            let negative = (kind.rows() == 2).then(|| (embeds(1), 7.5));
            let noise = pipeline.start_noise(0, side, side);
            let request = Request { negative, ..Request::new(embeds(0), noise, vec![0], STEPS) };
            let latents = pipeline.generate(&request, &mut |_| ()).unwrap();
            if self.releases {
                drop(pipeline);
                memory::release(&device);
                pipeline = open(Placement { denoiser: Streamed, ..self.place });
            }
            pipeline.decode(latents).unwrap().remove(0).into_raw()
        };
        let (image, measured) = bench::watched("image", &device, make);
        Measured { mib: mib(measured.taken()), seconds: measured.seconds, image }
    }
}

const STEPS: usize = 2;

struct Measured {
    mib: f64,
    seconds: f64,
    image: Vec<u8>,
}

/// Every level and every technique alone.
fn techniques(models: &Models) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    flux_dev(None, &at("flux"));
    stable_diffusion(false, &at("sd"));
    let mut rows: Vec<(String, Technique, Option<QuantizedTo>)> =
        Level::ALL.map(|level| (format!("level `{}`", level.word()), Technique::of(level), None)).into();
    let limits = Limits::NONE;
    let vae = Technique { place: Placement { vae: Streamed, ..Technique::NONE.place }, ..Technique::NONE };
    for (name, technique) in [
        ("components one after the other", Technique { releases: true, ..vae }),
        ("VAE from its file", vae),
        ("blocks from the file, the next one read ahead", Technique::denoiser(Streamed)),
        ("blocks from the file, one at a time", Technique::denoiser(Single)),
        ("VAE in bands of 64 rows", Technique::within(Limits { vae_rows: Some(64), ..limits })),
        ("VAE an image at a time", Technique::within(Limits { vae_images: Some(1), ..limits })),
        ("attention in parts of 2²⁴ scores", Technique::within(Limits { attention_scores: Some(1 << 24), ..limits })),
        ("feed-forward 512 tokens at a time", Technique::within(Limits { feed_forward_tokens: Some(512), ..limits })),
    ] {
        rows.push((name.into(), technique, None));
    }
    for (name, to) in [("int8", QuantizedTo::Int8), ("fp8", QuantizedTo::Fp8), ("nf4", QuantizedTo::Nf4)] {
        rows.push((format!("weights in {name}"), Technique::NONE, Some(to)));
        // fp8 has the sizes of int8, but for some scales.
        flux_dev(Some(if name == "fp8" { "int8" } else { name }), &at(&format!("flux-{to:?}")));
        let options = QuantizeOptions { to, for_diffusers: false };
        quantize_folder(&models.flux, &["transformer"], &at(&format!("sized-{to:?}")), options).unwrap();
    }
    println!(
        "| | FLUX.1-dev 1024²: GiB planned | Stable Diffusion 1.5 512²: GiB planned | FLUX: host MiB | time | same image | SD: host MiB | time | same image |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let kinds = [(Kind::Flux, 512), (Kind::StableDiffusion, 256)];
    let model = |kind| if kind == Kind::Flux { &models.flux } else { &models.stable_diffusion };
    let without = kinds.map(|(kind, side)| {
        Technique::NONE.measure(kind, model(kind), side); // what is made once
        Technique::NONE.measure(kind, model(kind), side)
    });
    for (name, technique, to) in rows {
        let full = to.map_or(at("flux"), |to| at(&format!("flux-{to:?}")));
        let planned = |kind, model: &Path, side| gib(technique.planned(kind, model, side, FloatDType::BF16));
        let mut cells = vec![format!("{:.1}", planned(Kind::Flux, &full, 1024))];
        cells.push(match to {
            Some(_) => String::new(),
            None => format!("{:.2}", planned(Kind::StableDiffusion, &at("sd"), 512)),
        });
        for ((kind, side), none) in kinds.into_iter().zip(&without) {
            if to.is_some() && kind == Kind::StableDiffusion {
                cells.extend([const { String::new() }; 3]);
                continue;
            }
            let model = to.map_or(model(kind).clone(), |to| at(&format!("sized-{to:?}")));
            let Measured { mib, seconds, image } = technique.measure(kind, &model, side);
            let same = if image == none.image { "yes" } else { "no" };
            cells.extend([format!("{mib:.0}"), format!("{:.2}", seconds / none.seconds), same.into()]);
        }
        println!("| {name} | {} |", cells.join(" | "));
    }
    println!();
}

/// The plan of a LoRA of rank 16 on FLUX.1-dev at 1024², by the weights of its base and by level.
fn training() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    images(&data, 1024);
    println!("| training step, GiB planned | {} |", Level::ALL.map(Level::word).join(" | "));
    println!("|---|---|---|---|---|");
    for to in [None, Some("int8"), Some("nf4")] {
        let model = folder.path().join(to.unwrap_or("bf16"));
        flux_dev(to, &model);
        let cells = Level::ALL.map(|level| {
            let settings = [
                format!("model.path={}", model.display()),
                format!("data.path={}", data.display()),
                format!("data.cache={}", folder.path().join("cache").display()),
                format!("memory.level={}", level.word()),
                "data.resolution=1024".into(),
                "data.batch_size=1".into(),
                "data.validation_split=0".into(),
                "lora.rank=16".into(),
                "validation.prompts=[]".into(),
            ];
            let config = TrainConfig::load(source("configs/flux_lora.toml"), &settings).unwrap();
            let plan = dry_run(&config, &Device::flex(), &mut Silent).unwrap().memory;
            let step = plan.phases.iter().find(|phase| phase.name == "training step").unwrap();
            let most = plan.peak();
            format!("{:.1} ({}: {:.1})", gib(step.bytes()), most.name, gib(most.bytes()))
        });
        println!("| {} | {} |", to.unwrap_or("bf16"), cells.join(" | "));
        fs::remove_dir_all(&model).unwrap();
    }
    println!();
}
