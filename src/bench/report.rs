//! What was measured, case by case, on both sides.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Case, Machine, Operation, Variant, Work, peer::Answer};

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
}

impl Row {
    fn ceiling(&self) -> Option<bool> {
        self.case.operation.and_then(Operation::ceiling)
    }
}
