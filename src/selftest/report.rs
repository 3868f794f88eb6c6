//! The table of a self-test.

use std::fmt;

use burn::tensor::FloatDType;
use serde::Serialize;

use super::check::{Check, Precision};

/// A line: a computed tensor, or an error.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Model and tensor, or kernel and shape. Tensors of one kind, such as all gradients, are one line.
    pub what: String,
    /// The dtype, or the precision that was reached instead.
    pub dtype: Precision,
    /// The error, relative or absolute; see [`check`](super::check). `None` if there is none, or if it is NaN.
    pub error: Option<f64>,
    /// The tolerance.
    pub bound: Option<f64>,
    /// Whether the error is within it.
    pub ok: bool,
    /// Of several tensors, the worst one; or the problem.
    pub note: Option<String>,
}

impl Row {
    pub(super) fn checked(what: String, check: Check, note: Option<String>) -> Self {
        Self {
            what,
            dtype: check.precision,
            error: check.error.is_finite().then_some(check.error),
            bound: Some(check.bound),
            ok: check.passes(),
            note,
        }
    }

    pub(super) fn said(what: String, dtype: FloatDType, ok: bool, note: String) -> Self {
        let dtype = if dtype == FloatDType::F32 { Precision::F32 } else { Precision::Bf16 };
        Self { what, dtype, error: None, bound: None, ok, note: Some(note) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or("-".to_string(), |number| format!("{number:.1e}"));
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        let (error, bound, verdict) = (number(self.error), number(self.bound), if self.ok { "ok" } else { "FAIL" });
        write!(f, "{:47} {dtype:4} {error:>8} {bound:>8}  {verdict:4}", self.what)?;
        self.note.iter().try_for_each(|note| write!(f, " {note}"))
    }
}

/// The results of a self-test.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of kiln.
    pub version: &'static str,
    /// The device.
    pub device: String,
    /// Whether this build has CUDA in it.
    pub cuda: bool,
    /// All lines.
    pub rows: Vec<Row>,
}

impl Report {
    /// An empty report on `device`.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            device: device.into(),
            cuda: cfg!(feature = "cuda"),
            rows: Vec::new(),
        }
    }

    /// The number of failed lines.
    pub fn failures(&self) -> usize {
        self.rows.iter().filter(|row| !row.ok).count()
    }
}

/// The heading of the table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "kiln {} on {}", self.version, self.device)?;
        writeln!(f, "features: cuda {}\n", if self.cuda { "on" } else { "off" })?;
        write!(f, "{:47} {:4} {:>8} {:>8}", "what", "type", "error", "bound")
    }
}
