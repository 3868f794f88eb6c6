//! The self-test: does this machine compute the same as diffusers?
//!
//! [`run`] runs cases: single kernels against the CPU, then tiny models against [goldens](Golden), each in f32 and in bf16. A test of a
//! model is a function of a [`Golden`], which passes its results to [`Sink`]: here they are measured, in the parity tests they are
//! asserted. [`check`] has the tolerances.

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

/// Takes the name and the computed values, in any dtype, of a golden's tensor.
pub type Sink<'a> = &'a mut dyn FnMut(&str, TensorData) -> Result<()>;

/// The options of a self-test.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of tiny models and goldens.
    pub goldens: PathBuf,
    /// Only cases with this word in their name or dtype.
    pub only: Option<String>,
}

/// Tests `device`, which is displayed as `name`. Every line is passed to `on_row` when it is finished.
///
/// # Errors
/// The goldens are missing or incomplete, or no case matches. Failures and panics of cases are lines.
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
