//! Case by case, kiln and its peer, and what came of it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde::Serialize;

use super::{
    Case, Denoiser, FluxBench, Kind, Machine, Model, Operation, Options, Run, Training, UNetBench, Variant, Work,
    encoders, load, markdown,
    measure::measure,
    peer::{Answer, Peer},
};
use crate::{
    error::{Error, Result},
    memory,
    training::Activations,
};

/// What was measured, as it is written to a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// What the peer is made of.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peer: BTreeMap<String, String>,
    /// Each case.
    pub rows: Vec<Row>,
}

/// One case on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub case: Case,
    /// What an operation must do at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Kiln's ways to do it.
    pub kiln: Vec<Variant>,
    /// The peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Answer>,
}

/// Where a report goes, after every case: what was measured is kept when the program is ended.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// As JSON.
    pub json: Option<PathBuf>,
    /// As Markdown.
    pub markdown: Option<PathBuf>,
}

/// Measures what `options` ask for on `device`, and on the peer that the command `peer` starts; writes `files` as it
/// goes on.
///
/// # Errors
/// The options ask for nothing that can be measured, the peer cannot be started, or a file cannot be written. What goes
/// wrong while measuring stands in the report.
pub fn run(options: &Options, peer: Option<&str>, files: &Files, device: &Device) -> Result<Report> {
    let cases = options.cases(device)?;
    let mut peer = peer.map(Peer::start).transpose()?;
    let mut report = Report { machine: Machine::here(device), peer: BTreeMap::new(), rows: Vec::new() };
    report.write(files)?; // first: a file that cannot be written shows before hours have passed
    let count = cases.len();
    for (number, mut case) in (1..).zip(cases) {
        tracing::info!("{number} of {count}: {case}");
        let folder =
            (case.case == Kind::Load && case.path.is_none()).then(|| load::Folder::write(&case, device)).transpose()?;
        if let Some(folder) = &folder {
            case.path = Some(folder.path().into());
        }
        memory::release(device);
        let kiln = variants(&case, device);
        kiln.iter().for_each(|variant| tell("kiln", variant));
        let answer = peer.as_mut().map(|peer| peer.measure(&case));
        if let Some(answer) = &answer {
            report.peer.extend(answer.versions.clone());
            answer.variants.iter().for_each(|variant| tell("peer", variant));
        }
        let work = case.operation.map(|operation| operation.work(&case.shape, case.dtype.size()));
        report.rows.push(Row { case, work, kiln, peer: answer });
        report.write(files)?;
    }
    Ok(report)
}

/// Measures a case in every way that kiln knows.
fn variants(case: &Case, device: &Device) -> Vec<Variant> {
    let one = |prepare: &dyn Fn() -> Result<Run>| vec![measure("kiln", device, case.repeats, prepare)];
    match (case.case, case.model) {
        (Kind::Operation, _) => case.operation.map(|operation| operation.measure(case, device)).into_iter().collect(),
        (Kind::Train, Some(Model::Unet)) => training(case, device, UNetBench::new),
        (Kind::Train, _) => training(case, device, FluxBench::new),
        (Kind::Sample, Some(Model::Unet)) => one(&|| Ok(sampling(UNetBench::new(case, device)))),
        (Kind::Sample, _) => one(&|| Ok(sampling(FluxBench::new(case, device)))),
        (Kind::Load, _) => one(&|| load::prepare(case, device)),
        _ => one(&|| Ok(encoders::prepare(case, device))),
    }
}

fn training<D: Denoiser>(case: &Case, device: &Device, denoiser: fn(&Case, &Device) -> D) -> Vec<Variant> {
    let ways = [("blockwise", Activations::Blockwise), ("kept", Activations::Full)];
    let measured = ways.map(|(name, activations)| {
        measure(name, device, case.repeats, || {
            let mut training = Training::new(case, denoiser(case, device), activations)?;
            Ok(Box::new(move || Ok(Some(training.step()))))
        })
    });
    measured.into()
}

fn sampling(denoiser: impl Denoiser) -> Run {
    Box::new(move || denoiser.sample(1).map(Some))
}

fn tell(side: &str, variant: &Variant) {
    let Variant { name, first_seconds, error, .. } = variant;
    let name = if name == side { side.to_string() } else { format!("{side} {name}") };
    match (error, variant.median()) {
        (Some(error), _) => tracing::warn!("{name}: {error}"),
        (None, median) => {
            let [median, first] = [median, *first_seconds].map(Option::unwrap_or_default);
            let memory = memory::mib(variant.memory().unwrap_or(0));
            tracing::info!("{name}: {median:.6} s (the first {first:.3} s), {memory:.0} MiB at the peak");
        }
    }
}

impl Report {
    /// The most that was measured of what bounds operations: `(FLOP/s, bytes/s)`, on either side.
    pub fn ceilings(&self) -> [Option<f64>; 2] {
        [true, false].map(|arithmetic| {
            let rates = self.rows.iter().filter(|row| row.ceiling() == Some(arithmetic)).flat_map(|row| {
                let work = row.work.unwrap_or_default();
                let amount = if arithmetic { work.flops } else { work.bytes };
                let variants = row.kiln.iter().chain(row.peer.iter().flat_map(|answer| &answer.variants));
                variants.filter_map(move |variant| variant.median().map(|seconds| amount / seconds))
            });
            rates.reduce(f64::max)
        })
    }

    fn write(&self, files: &Files) -> Result<()> {
        let put = |path: &Path, text: String| std::fs::write(path, text).map_err(|e| Error::io(path, e));
        if let Some(path) = &files.json {
            put(path, serde_json::to_string_pretty(self).expect("a report is JSON") + "\n")?;
        }
        files.markdown.as_ref().map_or(Ok(()), |path| put(path, markdown::page(self)))
    }
}

impl Row {
    fn ceiling(&self) -> Option<bool> {
        self.case.operation.and_then(Operation::ceiling)
    }
}

/// As Markdown.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(markdown::page(self).trim_end())
    }
}
