//! The self-test: whether this machine computes what diffusers computes.
//!
//! [`run`] goes through cases: single kernels against the CPU, then tiny models against [goldens](Golden), each in f32 and in
//! bf16. What a model is run for is one function for each [`Golden`], which hands what it computed to [`Sink`]: here it is
//! measured, in the tests of parity it is asserted. [`check`] says what is allowed.

mod golden;
pub mod check;
mod report;
pub mod encoders;
pub mod flux;
pub mod lora_steps;
pub mod sampling;
pub mod unet;
pub mod edit_steps;
mod case;
mod kernel;

use std::path::PathBuf;

use burn::tensor::{Device, TensorData};

use crate::error::{Error, Result};
use case::Case;
pub use golden::{Difference, Golden};
pub use report::{Report, Row};

/// Takes what was computed for a tensor of a golden: its name, and its values in any dtype.
pub type Sink<'a> = &'a mut dyn FnMut(&str, TensorData) -> Result<()>;

/// What to test, and with what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of tiny models and goldens.
    pub goldens: PathBuf,
    /// Only cases in whose name and type this word occurs.
    pub only: Option<String>,
}

/// Tests `device`, which a person calls `name`. Every line goes to `on_row` when it is there.
///
/// # Errors
/// The goldens are missing or incomplete, or no case is as asked. What a case finds wrong, or that it panics, is a line.
pub fn run(options: &Options, device: &Device, name: &str, on_row: &mut dyn FnMut(&Row)) -> Result<Report> {
    let goldens = |class| Golden::all(&options.goldens, class, device);
    let (flux, edits) = (goldens("FluxPipeline")?, goldens("StableDiffusionInstructPix2PixPipeline")?);
    let mut cases = kernel::cases(device);
    cases.extend(flux.iter().flat_map(case::flux));
    cases.extend(edits.iter().flat_map(case::edits));
    if let Some(word) = &options.only {
        let mut names: Vec<_> = cases.iter().map(Case::name).collect();
        cases.retain(|case| case.name().contains(word.as_str()));
        if cases.is_empty() {
            names.dedup_by_key(|name| name.split(' ').next().map(str::to_string));
            let kinds: Vec<_> = names.iter().filter_map(|name| name.split(' ').next()).collect();
            return Err(Error::setting("only", format!("no check has `{word}` in its name"))
                .hint(format!("words that occur are {}, f32 and bf16", kinds.join(", "))));
        }
    }
    let mut report = Report::new(name);
    for case in &cases {
        for row in case.run() {
            on_row(&row);
            report.rows.push(row);
        }
    }
    Ok(report)
}
