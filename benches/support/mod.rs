//! kiln beside its peer: each case in a process of its own, the two sides taking turns, medians as a table.
//!
//! ```text
//! cargo bench --bench NAME -- [--peer COMMAND] [--repeats N] [--rounds N] [--threads N] [--only CASE]
//! ```
//!
//! Each process warms up with one run and then measures `--repeats` runs, so that the peak of resident memory is that of its
//! case. "others" is how many cores everything else on the machine kept busy meanwhile, at worst: above about 0.1 the times are
//! not to be trusted.
//!
//! The peer is `bench_cpu.py` with diffusers, PEFT and PyTorch (`pip install torch diffusers transformers peft` into a
//! virtual environment; golden.py must lie beside it), called as `COMMAND --case MODEL:CASE --threads N --repeats N
//! --sample-steps 8`; the last line it prints is JSON with `all` (seconds of each run), `peak_rss_mib` and
//! `cores_used_by_others`. If the command fails, kiln's numbers stand alone. Results: `benches/results/`.
#![allow(clippy::disallowed_macros)] // a bench may end when nobody reads its results

use std::{fs, process::Command, time::Instant};

use burn::tensor::{Device, Tensor};
use clap::{Parser, ValueEnum};
use kiln::{
    bench::{self, Activation, Denoiser, Kind, Trained, Training},
    device::Dtype,
    memory,
};
use serde::{Deserialize, Serialize};

/// Denoising steps of a picture.
pub const STEPS: usize = 8;

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

/// What is measured.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Case {
    /// A step that keeps every activation.
    Train,
    /// A step that keeps what enters each block.
    TrainCheckpointing,
    /// A picture.
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

/// Makes a case of a small denoiser ready: training of two pictures, or sampling of `rows` rows.
pub fn setup<D: Denoiser>(
    case: Case,
    rows: usize,
    targets: Option<Trained>,
    denoiser: impl Fn(&bench::Case) -> D,
) -> Box<dyn FnMut()> {
    let small = |kind, batch, targets| bench::Case {
        size: Some(256),
        batch,
        targets,
        ..bench::Case::new(kind, true, Dtype::F32, 1, "cpu".into())
    };
    let finite = |number: Tensor<1>| assert!(number.into_scalar::<f32>().is_finite(), "the result is a number");
    let activation = match case {
        Case::Train => Activation::Kept,
        Case::TrainCheckpointing => Activation::Blockwise,
        Case::Sample => {
            let denoiser = denoiser(&small(Kind::Sample, rows, None));
            return Box::new(move || finite(denoiser.sample(STEPS)));
        }
    };
    let case = small(Kind::Train, 2, targets);
    let mut training = Training::new(&case, denoiser(&case), activation).expect("the model has layers to train");
    Box::new(move || finite(training.step()))
}

/// Compares `model`, the peer's name for it, in all cases; `setup` makes a case ready to be run again and again.
pub fn main(model: &str, setup: impl Fn(Case) -> Box<dyn FnMut()>) {
    let args = Args::parse();
    match args.case {
        Some(case) => {
            memory::keep_freed(); // as the program does
            println!("{}", serde_json::to_string(&measure(setup(case), args.repeats)).expect("numbers"));
        }
        None => compare(model, &args),
    }
}

/// Runs all cases on both sides and prints the table.
fn compare(model: &str, args: &Args) {
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
                    "exec {command} --case {model}:{name} --threads {threads} --repeats {repeats} --sample-steps {STEPS}"
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
fn measure(mut run: Box<dyn FnMut()>, repeats: usize) -> Measurement {
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
