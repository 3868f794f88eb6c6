//! Running the cases with kiln and the peer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::Device;

use super::{
    Case, Kind, Machine, Model, Options, Report, Row, Run, Variant, encoders, flux, load, markdown, measure::measure,
    peer::Peer, step::Training, subject::Subject, unet,
};
use crate::{
    error::{Error, Result},
    memory,
    pipelines::Pipeline,
    training::{Activations, objective::Objective},
};

/// The files of a report, written after every case, so that measurements survive if the program is killed.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// As JSON.
    pub json: Option<PathBuf>,
    /// As Markdown.
    pub markdown: Option<PathBuf>,
}

/// Measures the cases of `options` on `device`, and with the peer that the command `peer` starts; writes `files` after every case.
///
/// # Errors
/// The options match no case, the peer cannot be started, or a file cannot be written. Errors of measurements are in the report.
pub fn run(options: &Options, peer: Option<&str>, files: &Files, device: &Device) -> Result<Report> {
    let cases = options.cases(device)?;
    let mut peer = peer.map(Peer::start).transpose()?;
    let mut report = Report { machine: Machine::here(device), peer: BTreeMap::new(), rows: Vec::new() };
    report.write(files)?; // first: a file that cannot be written shows before hours have passed
    let count = cases.len();
    for (number, mut case) in (1..).zip(cases) {
        tracing::info!("{number} of {count}: {case}");
        let folder =
            (case.kind == Kind::Load && case.path.is_none()).then(|| load::Folder::write(&case, device)).transpose()?;
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

/// Measures all variants of a case.
fn variants(case: &Case, device: &Device) -> Vec<Variant> {
    let one = |prepare: &dyn Fn() -> Result<Run>| vec![measure("kiln", device, case.repeats, prepare)];
    match (case.kind, case.model) {
        (Kind::Operation, _) => case.operation.map(|operation| operation.measure(case, device)).into_iter().collect(),
        (Kind::Train, Some(Model::Unet)) => training(case, device, unet::subject),
        (Kind::Train, _) => training(case, device, flux::subject),
        (Kind::Sample, Some(Model::Unet)) => one(&|| Ok(sampling(case, unet::subject(case, device)))),
        (Kind::Sample, _) => one(&|| Ok(sampling(case, flux::subject(case, device)))),
        (Kind::Load, _) => one(&|| load::prepare(case, device)),
        _ => one(&|| Ok(encoders::prepare(case, device))),
    }
}

fn training<P: Pipeline + 'static, O: Objective<P> + 'static>(
    case: &Case,
    device: &Device,
    subject: fn(&Case, &Device) -> Subject<P, O>,
) -> Vec<Variant> {
    let ways = [("blockwise", Activations::Blockwise), ("kept", Activations::Full)];
    let measured = ways.map(|(name, activations)| {
        measure(name, device, case.repeats, || {
            let mut training = Training::new(case, subject(case, device), activations)?;
            Ok(Box::new(move || Ok(Some(training.step()))))
        })
    });
    measured.into()
}

fn sampling<P: Pipeline + 'static, O: 'static>(case: &Case, subject: Subject<P, O>) -> Run {
    let steps = case.steps.unwrap_or(1);
    Box::new(move || subject.sample(steps).map(Some))
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
    fn write(&self, files: &Files) -> Result<()> {
        let put = |path: &Path, text: String| std::fs::write(path, text).map_err(|e| Error::io(path, e));
        if let Some(path) = &files.json {
            put(path, serde_json::to_string_pretty(self).expect("a report is JSON") + "\n")?;
        }
        files.markdown.as_ref().map_or(Ok(()), |path| put(path, markdown::page(self)))
    }
}
