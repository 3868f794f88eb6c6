//! A case of the self-test, isolated against failures and panics.

use burn::tensor::FloatDType;

use super::{
    Golden, Sink,
    check::{Check, Precision},
    edit_steps, encoders, flux, lora_steps,
    report::Row,
    sampling, unet,
};
use crate::{error::Result, panics::unpanicked, training::Activations};

/// The two dtypes of models.
pub(super) const DTYPES: [FloatDType; 2] = [FloatDType::F32, FloatDType::BF16];

/// A result of a case: a tensor's name and its error.
type Checked<'a> = &'a mut dyn FnMut(&str, Check);

/// A test in one dtype.
pub(super) struct Case<'a> {
    what: String,
    dtype: FloatDType,
    run: Box<dyn Fn(Checked) -> Result<()> + 'a>,
}

impl<'a> Case<'a> {
    pub fn new(what: String, dtype: FloatDType, run: impl Fn(Checked) -> Result<()> + 'a) -> Self {
        Self { what, dtype, run: Box::new(run) }
    }

    /// The name of the test, with the dtype.
    pub fn name(&self) -> String {
        format!("{} {}", self.what, if self.dtype == FloatDType::F32 { "f32" } else { "bf16" })
    }

    /// Its lines: one for each tensor or kind of tensors, and one for an error that ended it early.
    pub fn run(&self) -> Vec<Row> {
        let mut groups: Vec<Group> = Vec::new();
        let mut checked = |name: &str, check: Check| {
            let Check { precision, error, bound } = check;
            tracing::debug!("{} {name} {precision:?}: {error:.1e} of {bound:.1e}", self.what);
            match groups.iter_mut().find(|known| group(&known.worst) == group(name)) {
                Some(known) => known.add(name, check),
                None => groups.push(Group { worst: name.to_string(), check, count: 1 }),
            }
        };
        let (result, panics) = unpanicked(|| (self.run)(&mut checked));
        // Work on other threads may panic and be repeated in another way, which is not a failure, but worth a line.
        let (ok, problem) = match result {
            Some(Err(error)) => (false, Some(error.to_string().replace('\n', "; "))),
            Some(Ok(())) if groups.is_empty() => (false, Some("nothing was computed".into())),
            Some(Ok(())) => (true, panics.map(|panics| format!("went on after it {panics}"))),
            None => (false, panics),
        };
        let model = self.what.split(' ').next().unwrap_or_default();
        let row = |Group { worst, check, count }: Group| {
            let (kind, rest) = worst.split_at(group(&worst).len());
            let note = match rest.trim_matches('.') {
                _ if count == 1 => None,
                "" => Some(format!("{count} tensors")),
                rest => Some(format!("{count} tensors, worst {rest}")),
            };
            Row::checked(format!("{model} {kind}"), check, note)
        };
        let mut rows: Vec<_> = groups.into_iter().map(row).collect();
        rows.extend(problem.map(|problem| Row::said(self.what.clone(), self.dtype, ok, problem)));
        rows
    }
}

/// Tensors of one kind.
struct Group {
    /// The one that uses most of its bound.
    worst: String,
    check: Check,
    count: usize,
}

impl Group {
    fn add(&mut self, name: &str, check: Check) {
        self.count += 1;
        // If one is in TF32, the line says so for all.
        let rank = |check: &Check| (!check.passes(), check.precision == Precision::Tf32, check.share());
        if rank(&check) > rank(&self.check) {
            (self.worst, self.check) = (name.to_string(), check);
        }
    }
}

/// The tests of FLUX.1.
pub(super) fn flux(golden: &Golden) -> Vec<Case<'_>> {
    let parts: [Part; 7] = [
        ("text", encoders::text),
        ("vae", encoders::vae),
        ("blocks", flux::blocks),
        ("transformer", flux::outputs),
        ("sampling", sampling::flux),
        ("training", |golden, dtype, found| {
            lora_steps::replay(golden, dtype, "train_lora", Activations::Blockwise, found)
        }),
        ("training_all", |golden, dtype, found| {
            lora_steps::replay(golden, dtype, "train_lora_all", Activations::Blockwise, found)
        }),
    ];
    cases(golden, &parts)
}

/// The tests of InstructPix2Pix.
pub(super) fn edits(golden: &Golden) -> Vec<Case<'_>> {
    let parts: [Part; 6] = [
        ("text", encoders::text),
        ("vae", encoders::vae),
        ("levels", unet::levels),
        ("unet", unet::outputs),
        ("sampling", sampling::edit),
        ("training", |golden, dtype, found| edit_steps::replay(golden, dtype, Activations::Blockwise, found)),
    ];
    cases(golden, &parts)
}

/// A test of a model: its name and its function.
type Part = (&'static str, fn(&Golden, FloatDType, Sink) -> Result<()>);

fn cases<'a>(golden: &'a Golden, parts: &[Part]) -> Vec<Case<'a>> {
    let case = |(part, compute): Part, dtype| {
        Case::new(format!("{} {part}", golden.name()), dtype, move |checked| {
            compute(golden, dtype, &mut |name, got| {
                checked(name, Check::golden(golden, name, got, dtype)?);
                Ok(())
            })
        })
    };
    parts.iter().flat_map(|part| DTYPES.map(|dtype| case(*part, dtype))).collect()
}

/// The length of the common prefix of the names of one kind of tensors.
fn group(name: &str) -> &str {
    let kinds = [".taps.", ".grad1.", ".grad5.", ".final."];
    match kinds.iter().find_map(|kind| name.find(kind).map(|at| at + kind.len() - 1)) {
        Some(end) => &name[..end],
        None => {
            name.strip_suffix(".prediction").map_or(name, |step| step.trim_end_matches(|c: char| c.is_ascii_digit()))
        }
    }
}
