//! The report: the measurements of both sides, case by case.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Case, Machine, Operation, Variant, Work, peer::Answer};

/// A report, as it is written to a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine and the time.
    pub machine: Machine,
    /// The versions of the peer's libraries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peer: BTreeMap<String, String>,
    /// Each case.
    pub rows: Vec<Row>,
}

/// A case on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// The least work of an operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// kiln's variants.
    pub kiln: Vec<Variant>,
    /// The peer's variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Answer>,
}

impl Report {
    /// The measured ceilings, `(FLOP/s, bytes/s)`: the higher one of both sides.
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
}

impl Row {
    fn ceiling(&self) -> Option<bool> {
        self.case.operation.and_then(Operation::ceiling)
    }
}
