//! What each way to need less memory saves and costs: peak memory and time of one call without the limit and with it.
//!
//! ```text
//! cargo bench --bench memory -- [--only CASE] [--size PIXELS] [--rows N] [--repeats N] [--alone] [--json FILE]
//! ```
//!
//! Models have their real widths and random weights, on the CPU; a transformer has one block of each kind, as what exists at once
//! does not depend on their number. Peaks are those of resident memory beside what there was before, without weights. The two sides
//! take turns. Beside the time on the clock stands that of the process on all cores, which other programs on the machine
//! disturb less. The outputs are compared: "equal" says whether they are the same bits. Results: `benches/results/`.
#![allow(clippy::disallowed_macros)] // a bench may end when nobody reads its results

use std::{fs, path::PathBuf};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use kiln::{
    bench, kernels,
    lending::Residence,
    limits::Limits,
    memory::{self, mib},
    models::{
        flux::{FluxConfig, FluxInputs, FluxTransformer},
        unet::{UNet, UNetConfig, UNetInputs},
        vae::AutoencoderKl,
    },
    rng::Seed,
    weights::Weights,
};
use serde::Serialize;

#[derive(Parser)]
struct Args {
    /// One case instead of all.
    #[arg(long, value_enum)]
    only: Option<Case>,
    /// Both sides of the image, in pixels; each case has its own default.
    #[arg(long)]
    size: Option<usize>,
    /// Rows of a band of the VAE.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Measured calls of each side.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// Measures the side with the limit alone, at sizes for which the other lacks memory.
    #[arg(long)]
    alone: bool,
    /// Where the numbers of every call are written.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Case {
    /// The decoder of Stable Diffusion's VAE in bands, f32.
    VaeDecodeRows,
    /// Its encoder in bands, f32.
    VaeEncodeRows,
    /// Its decoder for four images one by one, f32.
    VaeDecodeImages,
    /// A double and a single block of FLUX.1, 1024 tokens in the feed-forward at a time, f32.
    FluxFeedForward,
    /// The UNet of Stable Diffusion 1.5, two rows, 1024 tokens in the feed-forward at a time, f32.
    UnetFeedForward,
    /// Attention of FLUX.1 in bf16, one head at a time.
    AttentionHeads,
    /// The same, 512 queries of a head at a time.
    AttentionQueries,
}

/// A call of the case within limits; what comes of it.
type Run = Box<dyn Fn(&Limits) -> TensorData>;

const SEED: Seed = Seed(0);

fn normal<const D: usize>(shape: [usize; D], dtype: FloatDType) -> Tensor<D> {
    bench::normal("inputs", shape, &Device::flex(), dtype)
}

fn vae() -> AutoencoderKl {
    AutoencoderKl::load(&Weights::random(SEED, &Device::flex(), None), bench::unet_vae(), Residence::Resident)
}

/// The call, and the limits of its second side.
fn prepare(case: Case, size: usize, rows: usize) -> (Run, Limits) {
    let device = Device::flex();
    let (f32, latent) = (FloatDType::F32, size / 8);
    match case {
        Case::VaeDecodeRows | Case::VaeDecodeImages => {
            let (vae, images) = (vae(), if case == Case::VaeDecodeImages { 4 } else { 1 });
            let latents = normal([images, 4, latent, latent], f32);
            let limits = match case {
                Case::VaeDecodeRows => Limits { vae_rows: Some(rows), ..Limits::NONE },
                _ => Limits { vae_images: Some(1), ..Limits::NONE },
            };
            (Box::new(move |limits| vae.decode_within(latents.clone(), limits).into_data()), limits)
        }
        Case::VaeEncodeRows => {
            let (vae, pixels) = (vae(), normal([1, 3, size, size], f32));
            let limits = Limits { vae_rows: Some(rows), ..Limits::NONE };
            (Box::new(move |limits| vae.encode_within(pixels.clone(), limits).into_tensor().into_data()), limits)
        }
        Case::FluxFeedForward => {
            let config = FluxConfig { num_layers: 1, num_single_layers: 1, ..FluxConfig::default() };
            let inputs = FluxInputs {
                img: normal([1, (latent / 2).pow(2), config.in_channels], f32),
                txt: normal([1, 512, config.joint_attention_dim], f32),
                pooled: normal([1, config.pooled_projection_dim], f32),
                sigma: Tensor::full([1], 0.5, &device),
                guidance: Tensor::full([1], 3.5, &device),
                rope: config.rope(512, latent, latent, &device),
                limits: Limits::NONE,
            };
            let weights = Weights::random(SEED, &device, None);
            let model = FluxTransformer::load(&weights, config, Residence::Resident);
            let run: Run = Box::new(move |&limits| model.forward(&FluxInputs { limits, ..inputs.clone() }).into_data());
            (run, Limits { feed_forward_tokens: Some(1024), ..Limits::NONE })
        }
        Case::UnetFeedForward => {
            let config = UNetConfig { cross_attention_dim: 768, ..UNetConfig::default() };
            let inputs = UNetInputs {
                sample: normal([2, config.in_channels, latent, latent], f32),
                timestep: Tensor::full([2], 500.0, &device),
                text: normal([2, 77, 768], f32),
                limits: Limits::NONE,
            };
            let model = UNet::load(&Weights::random(SEED, &device, None), config, Residence::Resident);
            let run: Run = Box::new(move |&limits| model.forward(&UNetInputs { limits, ..inputs.clone() }).into_data());
            (run, Limits { feed_forward_tokens: Some(1024), ..Limits::NONE })
        }
        Case::AttentionHeads | Case::AttentionQueries => {
            let tokens = (latent / 2).pow(2) + 512;
            let [q, k, v] = [0, 1, 2].map(|_| normal([1, 24, tokens, 128], FloatDType::BF16));
            let some = if case == Case::AttentionHeads { tokens } else { 512 };
            let run: Run = Box::new(move |limits| {
                let [q, k, v] = [&q, &k, &v].map(Clone::clone);
                kernels::attention_within(q, k, v, limits.attention_scores).into_data()
            });
            (run, Limits { attention_scores: Some(some * tokens), ..Limits::NONE })
        }
    }
}

/// What one call took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Call {
    peak_mib: f64,
    seconds: f64,
    core_seconds: f64,
}

/// A case with all its calls.
#[derive(Debug, Serialize)]
struct Row {
    case: Case,
    size: usize,
    without: Vec<Call>,
    with: Vec<Call>,
    equal: bool,
    /// The largest difference, in 255ths of a range of 2.
    largest: f64,
}

/// CPU seconds that this process has used, on all cores; none where the system does not say (only Linux does).
fn core_seconds() -> f64 {
    const TICKS: f64 = 100.0; // of the kernel's clock in a second, as programs see it
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    text.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

fn measure(run: &Run, limits: &Limits) -> (Call, TensorData) {
    let ((output, core_seconds), measured) = bench::watched("call", &Device::flex(), || {
        let before = core_seconds();
        (run(limits), core_seconds() - before)
    });
    (Call { peak_mib: mib(measured.taken()), seconds: measured.seconds, core_seconds }, output)
}

fn largest(a: &TensorData, b: &TensorData) -> f64 {
    let values = |data: &TensorData| data.clone().convert_dtype(DType::F32).into_vec::<f32>().expect("just converted");
    let pairs = values(a).into_iter().zip(values(b));
    pairs.map(|(a, b)| f64::from((a - b).abs()) * 127.5).fold(0.0, f64::max)
}

/// The least of all calls; not a number if there were none.
fn best(calls: &[Call], of: fn(&Call) -> f64) -> f64 {
    calls.iter().map(of).reduce(f64::min).unwrap_or(f64::NAN)
}

fn main() {
    let args = Args::parse();
    memory::tune_allocator(); // as the program does
    println!(
        "| case | size | MiB without | MiB with | ratio | s without | s with | core s without | core s with | ratio | equal |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for &case in args.only.as_ref().map_or(Case::value_variants(), std::slice::from_ref) {
        let usual = match case {
            Case::UnetFeedForward | Case::VaeDecodeImages => 512,
            Case::AttentionHeads | Case::AttentionQueries => 768,
            _ => 1024,
        };
        let size = args.size.unwrap_or(usual);
        let (run, limits) = prepare(case, size, args.rows);
        let mut row = Row { case, size, without: vec![], with: vec![], equal: true, largest: 0.0 };
        for _ in 0..args.repeats.max(1) {
            let whole = (!args.alone).then(|| measure(&run, &Limits::NONE));
            let (call, parts) = measure(&run, &limits);
            row.with.push(call);
            if let Some((call, whole)) = whole {
                row.without.push(call);
                row.equal &= whole == parts;
                row.largest = row.largest.max(largest(&whole, &parts));
            }
        }
        let both = |of: fn(&Call) -> f64| [best(&row.without, of), best(&row.with, of)];
        let [memory, seconds, cores] = [both(|c| c.peak_mib), both(|c| c.seconds), both(|c| c.core_seconds)];
        let equal = match (args.alone, row.equal) {
            (true, _) => String::new(),
            (false, true) => "yes".into(),
            (false, false) => format!("within {:.4}/255", row.largest),
        };
        let name = case.to_possible_value().expect("no case is hidden").get_name().to_string();
        let cell = |number: f64, digits: usize| match number.is_finite() {
            true => format!("{number:.digits$}"),
            false => String::new(),
        };
        let cells = [
            [memory[0], memory[1]].map(|mib| cell(mib, 0)),
            [memory[1] / memory[0], seconds[0]].map(|number| cell(number, 2)),
            [seconds[1], cores[0]].map(|seconds| cell(seconds, 1)),
            [cores[1], cores[1] / cores[0]].map(|number| cell(number, 2)),
        ];
        println!("| {name} | {size}² | {} | {equal} |", cells.as_flattened().join(" | "));
        rows.push(row);
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&rows).expect("numbers");
            fs::write(path, text + "\n").expect("the file for the numbers can be written");
        }
    }
}
