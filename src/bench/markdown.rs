//! A report as Markdown tables.

use super::{Case, Kind, Report, Row, Variant};
use crate::memory::mib;

/// As Markdown.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(page(self).trim_end())
    }
}

/// The whole report.
pub(super) fn page(report: &Report) -> String {
    let machine = &report.machine;
    let driver = machine.driver.as_ref().map_or(String::new(), |driver| format!(" · driver {driver}"));
    let peer: Vec<_> = report.peer.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let peer = if peer.is_empty() { String::new() } else { format!(" · {}", peer.join(", ")) };
    let mut page = format!(
        "# {}\n\n{}{driver} · kiln {}{peer}\n\n```sh\n{}\n```\n",
        machine.device, machine.date, machine.kiln, machine.command
    );
    let models: Vec<_> = report.rows.iter().filter(|row| row.case.kind != Kind::Operation).collect();
    if !models.is_empty() {
        page += "\n## Models\n\nSeconds are medians after a first run, which stands apart; memory is the peak. A ratio is \
                 kiln's number over the peer's.\n\n";
        page +=
            &table(&models, &["case", "way", "first s", "s", "MiB"], |row, variant| model_cells(&row.case, variant));
    }
    let operations: Vec<_> = report.rows.iter().filter(|row| row.case.kind == Kind::Operation).collect();
    if !operations.is_empty() {
        page += "\n## Operations\n\nRates are counted from the shape. The share is of what the measured ceilings allow: the \
                 least time for its products, or for its bytes if that is more.\n\n";
        let ceilings = report.ceilings();
        let head = ["operation", "shape", "ms", "TFLOP/s", "GB/s", "share"];
        page += &table(&operations, &head, |row, variant| operation_cells(row, variant, ceilings));
    }
    page
}

/// A row for each of kiln's variants, with columns for each of the peer's.
fn table(rows: &[&Row], head: &[&str], cells: impl Fn(&Row, &Variant) -> Vec<String>) -> String {
    let mut peers: Vec<&str> = Vec::new();
    for variant in rows.iter().filter_map(|row| row.peer.as_ref()).flat_map(|answer| &answer.variants) {
        if !peers.contains(&variant.name.as_str()) {
            peers.push(&variant.name);
        }
    }
    let in_ms = head.contains(&"ms");
    let mut columns: Vec<String> = head.iter().map(ToString::to_string).collect();
    for peer in &peers {
        columns.push(format!("{peer} {}", if in_ms { "ms" } else { "s" }));
        columns.push("ratio".into());
        if !in_ms {
            columns.extend([format!("{peer} MiB"), "ratio".into()]);
        }
    }
    let failed = rows.iter().any(|row| row.peer.as_ref().is_some_and(|answer| answer.error.is_some()));
    columns.extend(failed.then(|| "peer".to_string()));
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&columns) + &"|---".repeat(columns.len()) + "|\n";
    for row in rows {
        for variant in &row.kiln {
            let mut cells = cells(row, variant);
            for peer in &peers {
                let theirs = row.peer.iter().flat_map(|answer| &answer.variants).find(|variant| variant.name == *peer);
                cells.extend(beside(variant, theirs, in_ms));
            }
            let error = row.peer.as_ref().and_then(|answer| answer.error.clone());
            cells.extend(failed.then(|| cell(&error.unwrap_or_default())));
            text += &line(&cells);
        }
    }
    text
}

fn model_cells(case: &Case, variant: &Variant) -> Vec<String> {
    let way = if variant.name == "kiln" { "" } else { &variant.name };
    let seconds = match &variant.error {
        Some(error) => cell(error),
        None => number(variant.median(), 1.0),
    };
    let memory = variant.memory().map_or(String::new(), |bytes| format!("{:.0}", mib(bytes)));
    vec![case.to_string(), way.into(), number(variant.first_seconds, 1.0), seconds, memory]
}

fn operation_cells(row: &Row, variant: &Variant, [arithmetic, memory]: [Option<f64>; 2]) -> Vec<String> {
    let (work, seconds) = (row.work.unwrap_or_default(), variant.median());
    let rate = |amount: f64, unit: f64| match (amount > 0.0, seconds) {
        (true, Some(seconds)) => number(Some(amount / seconds), 1.0 / unit),
        _ => String::new(),
    };
    let roof = row.case.operation.filter(|operation| operation.has_roof());
    let share = match (roof, arithmetic, memory, seconds) {
        (Some(_), Some(flops), Some(bytes), Some(seconds)) => {
            format!("{:.0} %", 100.0 * (work.flops / flops).max(work.bytes / bytes) / seconds)
        }
        _ => String::new(),
    };
    let time = match &variant.error {
        Some(error) => cell(error),
        None => number(seconds, 1e3),
    };
    let operation = row.case.operation.map_or(String::new(), |operation| operation.to_string());
    let shape: Vec<_> = row.case.shape.iter().map(ToString::to_string).collect();
    let shape = format!("{} {}", shape.join("×"), name_of(&row.case));
    vec![operation, shape, time, rate(work.flops, 1e12), rate(work.bytes, 1e9), share]
}

fn name_of(case: &Case) -> &'static str {
    match case.dtype {
        crate::device::Dtype::F32 => "f32",
        crate::device::Dtype::Bf16 => "bf16",
    }
}

/// The peer's time and memory, with kiln's ratio to them.
fn beside(ours: &Variant, theirs: Option<&Variant>, in_ms: bool) -> Vec<String> {
    let Some(theirs) = theirs else { return vec![String::new(); if in_ms { 2 } else { 4 }] };
    let ratio = |ours: Option<f64>, theirs: Option<f64>| match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => String::new(),
    };
    let time = match &theirs.error {
        Some(error) => cell(error),
        None => number(theirs.median(), if in_ms { 1e3 } else { 1.0 }),
    };
    let mut cells = vec![time, ratio(ours.median(), theirs.median())];
    if !in_ms {
        let [ours, theirs] = [ours, theirs].map(|side| side.memory().map(mib));
        cells.extend([theirs.map_or(String::new(), |mib| format!("{mib:.0}")), ratio(ours, theirs)]);
    }
    cells
}

/// Four digits of a number in this unit.
fn number(value: Option<f64>, unit: f64) -> String {
    let Some(value) = value.map(|value| value * unit) else { return String::new() };
    let first = if value > 0.0 { value.log10().floor() as i32 } else { 0 };
    format!("{value:.*}", (3 - first).clamp(1, 9) as usize)
}

/// Escapes text for a cell.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bench::{Machine, Operation, Work, peer::Answer},
        device::Dtype,
    };

    fn variant(name: &str, seconds: f64, mib: u64) -> Variant {
        let bytes = Some(mib << 20);
        Variant {
            name: name.into(),
            seconds: vec![seconds],
            first_seconds: Some(3.0),
            device_peak_bytes: bytes,
            ..Variant::default()
        }
    }

    fn row(operation: Option<&str>, seconds: f64, peer: Option<Answer>) -> Row {
        let kind = if operation.is_some() { Kind::Operation } else { Kind::Clip };
        let operation: Option<Operation> = operation.map(|name| name.parse().unwrap());
        let case = Case { operation, shape: vec![8, 8, 8], ..Case::new(kind, true, Dtype::Bf16, 1, "cuda:0".into()) };
        let work = operation.map(|_| Work { flops: 1e12, bytes: 1e9 });
        Row { case, work, kiln: vec![variant("kiln", seconds, 512)], peer }
    }

    fn page_of(rows: Vec<Row>) -> String {
        let machine = Machine {
            date: "2026-11-21".into(),
            device: "a card".into(),
            driver: Some("580.1".into()),
            kiln: "0.1.0".into(),
            command: "kiln bench".into(),
        };
        page(&Report { machine, peer: [("torch".to_string(), "2".to_string())].into(), rows })
    }

    #[test]
    fn ratios_stand_beside_each_of_the_peers_ways_and_failures_are_said() {
        let broken = Variant { name: "compiled".into(), error: Some("out of | memory".into()), ..Variant::default() };
        let answer = Answer { variants: vec![variant("eager", 0.5, 1024), broken], ..Answer::default() };
        let page = page_of(vec![row(None, 0.25, Some(answer))]);
        assert!(page.contains("driver 580.1 · kiln 0.1.0 · torch 2"), "{page}");
        assert!(
            page.contains(
                "| clip 77 tokens × 1 |  | 3.000 | 0.2500 | 512 | 0.5000 | 0.50 | 1024 | 0.50 | out of / memory |"
            ),
            "{page}"
        );
    }

    #[test]
    fn the_share_is_of_the_faster_sides_ceiling() {
        let faster = Answer { variants: vec![variant("eager", 0.001, 1)], ..Answer::default() };
        let rows = vec![
            row(Some("matmul_ceiling"), 0.002, Some(faster)),
            row(Some("copy"), 0.001, None),
            row(Some("linear"), 0.004, None),
        ];
        let page = page_of(rows);
        // A thousand TFLOP/s of the peer, 250 of kiln.
        assert!(page.contains("| linear | 8×8×8 bf16 | 4.000 | 250.0 | 250.0 | 25 % |"), "{page}");
    }

    #[test]
    fn numbers_keep_about_four_digits() {
        assert_eq!(
            [0.01234, 1.23456, 12.3456, 1234.56].map(|n| number(Some(n), 1.0)),
            ["0.01234", "1.235", "12.35", "1234.6"]
        );
    }
}
