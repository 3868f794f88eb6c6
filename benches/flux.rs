//! Training and sampling of a small FLUX transformer beside the same work in PyTorch: time and peak memory.
//!
//! ```text
//! cargo bench --bench flux -- [--peer COMMAND] [--repeats N] [--rounds N] [--threads N] [--only CASE]
//! ```
//!
//! The model has the shape of FLUX.1 at 71 M parameters: width 512, 4 double and 8 single blocks, random weights, f32; its
//! input is 256 image and 64 text tokens. The cases:
//!
//! - `train`: one LoRA step on a batch of 2 (rank 16 on diffusers' default layers): draw noise and noise levels, forward,
//!   backward, clip by the common norm, AdamW. Every activation is kept.
//! - `train_checkpointing`: the same step, keeping only what enters each block.
//! - `sample`: 8 calls of the transformer with an Euler step after each, batch 1.
//!
//! VAE and text encoders are left out on both sides. Each case runs in a process of its own, so that the peak of resident
//! memory is its own, warms up with one run and then measures `--repeats` runs. kiln and the peer take turns, `--rounds`
//! times; the tables hold medians over all runs. "others" is how many cores everything else on the machine kept busy
//! meanwhile, at worst: above about 0.1 the times are not to be trusted.
//!
//! The peer is `bench_cpu.py` with diffusers, PEFT and PyTorch (`pip install torch diffusers transformers peft` into a
//! virtual environment; golden.py must lie beside it), called as `COMMAND --case flux:CASE --threads N --repeats N
//! --sample-steps 8`; the last line it prints is JSON with `all` (seconds of each run), `peak_rss_mib` and
//! `cores_used_by_others`. If the command fails, kiln's numbers stand alone. Results: `benches/results/`.

use std::{fs, process::Command, time::Instant};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use kiln::{
    lora::{self, Lora, LoraConfig},
    memory,
    models::{
        Segmented,
        flux::{FluxConfig, FluxInputs, FluxTransformer, draw_noise},
        text::PromptEmbeds,
    },
    rng::{Purpose, Seed},
    schedulers::{FlowMatchEuler, flow_match},
    training::{
        Mode, ObjectiveConfig, OptimizerConfig,
        backward::{self, backward},
        objective::FlowMatching,
        optimizer::{AdamW, clip},
    },
    weights::Weights,
};
use serde::{Deserialize, Serialize};

const SEED: Seed = Seed(0);
const BATCH: usize = 2;
const TEXT_TOKENS: usize = 64;
/// Of the latents, on each side: 256 image tokens.
const LATENT: usize = 32;
const STEPS: usize = 8;
const GUIDANCE: f64 = 3.5;

#[derive(Parser)]
struct Args {
    /// The peer, as the shell would call it.
    #[arg(long, default_value = "python3 tests/parity/bench_cpu.py")]
    peer: String,
    /// Measured runs of each process.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Processes of each side and case.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Of both sides; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// One case instead of all.
    #[arg(long, value_enum)]
    only: Option<Case>,
    /// Measure this case in this process and print JSON.
    #[arg(long, value_enum, hide = true)]
    case: Option<Case>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Case {
    Train,
    TrainCheckpointing,
    Sample,
}

/// What one process measured, or several together.
#[derive(Default, Serialize, Deserialize)]
struct Measurement {
    /// Seconds of each run.
    all: Vec<f64>,
    peak_rss_mib: f64,
    cores_used_by_others: f64,
}

impl Measurement {
    fn median(&self) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn add(&mut self, other: Self) {
        self.all.extend(other.all);
        self.peak_rss_mib = self.peak_rss_mib.max(other.peak_rss_mib);
        self.cores_used_by_others = self.cores_used_by_others.max(other.cores_used_by_others);
    }
}

fn main() {
    let args = Args::parse();
    match args.case {
        Some(case) => println!("{}", serde_json::to_string(&measure(case, args.repeats)).expect("numbers")),
        None => compare(&args),
    }
}

/// Runs all cases on both sides and prints the table.
fn compare(args: &Args) {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let program = std::env::current_exe().expect("this program has a path");
    println!("{threads} threads, {} runs in each of {} processes a side", args.repeats, args.rounds);
    println!("| case | kiln s | peer s | ratio | kiln MiB | peer MiB | ratio | others |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut failure = None;
    for &case in args.only.as_ref().map_or(Case::value_variants(), std::slice::from_ref) {
        let name = case.to_possible_value().expect("no case is hidden").get_name().to_string();
        let (mut ours, mut peers) = (Measurement::default(), Measurement::default());
        for _ in 0..args.rounds.max(1) {
            let mut child = Command::new(&program);
            child.args(["--case", &name, "--repeats", &args.repeats.to_string()]);
            ours.add(last_line(child.env("RAYON_NUM_THREADS", threads.to_string())).expect("kiln's own case runs"));
            if failure.is_none() {
                let (command, repeats) = (&args.peer, args.repeats);
                let line = format!(
                    "exec {command} --case flux:{name} --threads {threads} --repeats {repeats} --sample-steps {STEPS}"
                );
                match last_line(Command::new("sh").args(["-c", &line])) {
                    Ok(measured) => peers.add(measured),
                    Err(problem) => failure = Some(problem),
                }
            }
        }
        let (seconds, mib) = (ours.median(), ours.peak_rss_mib);
        if peers.all.is_empty() {
            println!("| {name} | {seconds:.3} | | | {mib:.0} | | | {:.2} |", ours.cores_used_by_others);
            continue;
        }
        println!(
            "| {name} | {seconds:.3} | {:.3} | {:.2} | {mib:.0} | {:.0} | {:.2} | {:.2} |",
            peers.median(),
            seconds / peers.median(),
            peers.peak_rss_mib,
            mib / peers.peak_rss_mib,
            ours.cores_used_by_others.max(peers.cores_used_by_others)
        );
    }
    if let Some(problem) = failure {
        println!("\nThe peer did not run, so there is nothing to compare with; `--peer` names its command.\n{problem}");
    }
}

/// Runs a command; what the last line of its output says.
fn last_line(command: &mut Command) -> Result<Measurement, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    match output.status.success() {
        true => serde_json::from_str(line).map_err(|e| format!("{e}: {line}")),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
    }
}

/// Measures one case in this process.
fn measure(case: Case, repeats: usize) -> Measurement {
    memory::keep_freed(); // as the program does
    let device = Device::flex();
    let config = FluxConfig {
        in_channels: 64,
        num_layers: 4,
        num_single_layers: 8,
        attention_head_dim: 64,
        num_attention_heads: 8,
        joint_attention_dim: 512,
        pooled_projection_dim: 256,
        axes_dims_rope: vec![8, 28, 28],
        ..Default::default()
    };
    let weights = Weights::random(SEED, &device, Some(FloatDType::F32));
    let model = FluxTransformer::load(&weights, config);
    let mut run: Box<dyn FnMut()> = match case {
        Case::Sample => {
            let text = text(&model.config, 1, &device);
            Box::new(move || sample(&model, &text, &device))
        }
        case => {
            let count = model.segments().len();
            let groups = match case {
                Case::Train => backward::full(count),
                _ => backward::blockwise(count),
            };
            let mut training = Training::new(model, &device);
            Box::new(move || training.step(&groups, &device))
        }
    };
    run(); // warm up
    let (busy, own) = (busy_seconds(), own_seconds());
    let mut all = Vec::new();
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        run();
        all.push(start.elapsed().as_secs_f64());
    }
    let others = (busy_seconds() - busy) - (own_seconds() - own);
    let cores_used_by_others = others.max(0.0) / all.iter().sum::<f64>();
    Measurement { all, peak_rss_mib: memory::usage(&Device::flex()).peak_mib(), cores_used_by_others }
}

fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = SEED.named(Purpose::Weights, name).normal(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn text(config: &FluxConfig, batch: usize, device: &Device) -> PromptEmbeds {
    PromptEmbeds {
        prompt: normal("prompt", [batch, TEXT_TOKENS, config.joint_attention_dim], device),
        pooled: normal("pooled", [batch, config.pooled_projection_dim], device),
    }
}

/// The state of a training run.
struct Training {
    model: FluxTransformer,
    lora: Lora,
    optimizer: AdamW,
    settings: OptimizerConfig,
    objective: FlowMatching,
    text: PromptEmbeds,
    step: u64,
}

impl Training {
    fn new(mut model: FluxTransformer, device: &Device) -> Self {
        let config = LoraConfig::default(); // rank 16, diffusers' layers
        let lora = Lora::init(&config, SEED, &mut model).expect("the model has the layers of FLUX");
        lora.attach(&mut model, 1.0).expect("the adapter was made for this model");
        let settings = OptimizerConfig::default();
        let objective = FlowMatching {
            config: ObjectiveConfig { guidance: GUIDANCE, ..Default::default() },
            scheduler: FlowMatchEuler::default(),
        };
        let text = text(&model.config, BATCH, device);
        Self { model, lora, optimizer: AdamW::new(settings.clone()), settings, objective, text, step: 0 }
    }

    fn step(&mut self, groups: &[std::ops::Range<usize>], device: &Device) {
        let shape = [BATCH, self.model.config.in_channels / 4, LATENT, LATENT];
        let step = self.step;
        let draw = |purpose| draw_noise((0..).map(|row| SEED.draw(purpose, step, row)), shape, device);
        let tokens = (LATENT / 2).pow(2);
        let sigma = |sample| self.objective.draw_sigma(SEED, self.step, sample, tokens);
        let sigmas: Vec<f32> = (0..BATCH as u64).map(sigma).collect();
        let (latents, noise) = (draw(Purpose::Posterior), draw(Purpose::Noise));
        let text = self.text.clone();
        let example = self.objective.example(&self.model.config, latents, text, noise, &sigmas, FloatDType::F32);
        let loss = |prediction| example.loss(prediction) * BATCH as f64;
        let (loss, mut gradients) = backward(&self.model, Mode::Lora, &example.inputs, groups, loss);
        clip(&mut gradients, 1.0 / BATCH as f64, self.settings.max_grad_norm);
        self.optimizer.step(self.settings.learning_rate, &mut self.lora, gradients);
        lora::detach_all(&mut self.model);
        self.lora.attach(&mut self.model, 1.0).expect("the adapter was made for this model");
        self.step += 1;
        assert!(loss.into_scalar::<f32>().is_finite(), "the loss is a number");
    }
}

/// Denoises one picture.
fn sample(model: &FluxTransformer, text: &PromptEmbeds, device: &Device) {
    let tokens = (LATENT / 2).pow(2);
    let mut img = normal("noise", [1, tokens, model.config.in_channels], device);
    let rope = model.config.rope(TEXT_TOKENS, LATENT, LATENT, device);
    for pair in FlowMatchEuler::default().inference_sigmas(STEPS, tokens).windows(2) {
        let velocity = model.forward(&FluxInputs {
            img: img.clone(),
            txt: text.prompt.clone(),
            pooled: text.pooled.clone(),
            sigma: Tensor::full([1], pair[0], device),
            guidance: Tensor::full([1], GUIDANCE, device),
            rope: rope.clone(),
        });
        img = flow_match::step(img, velocity, pair[0], pair[1]);
    }
    assert!(img.sum().into_scalar::<f32>().is_finite(), "the latents are numbers");
}

/// Ticks of the kernel's clock in a second; Linux shows 100 to programs on every machine that kiln runs on.
const TICKS: f64 = 100.0;

/// The numbers in a line of a file under /proc, from field `first` on; none where there is no such file.
fn ticks(path: &str, first: usize, count: usize) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(first).take(count);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// CPU seconds that everything on this machine has used.
fn busy_seconds() -> f64 {
    // "cpu user nice system idle iowait irq softirq steal"
    ticks("/proc/stat", 1, 3) + ticks("/proc/stat", 6, 3)
}

/// CPU seconds that this process has used.
fn own_seconds() -> f64 {
    ticks("/proc/self/stat", 13, 2)
}
