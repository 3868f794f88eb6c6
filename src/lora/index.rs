//! The modules of an adapter file, by the names and shapes of its tensors, before any tensor is read.

use std::collections::BTreeMap;

use super::{
    names::{self, Place},
    role::{Role, reason, split},
    settings::Settings,
};
use crate::{error::Result, weights::TensorFile};

/// The kind of change that a module holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    LowRank,
    Tucker,
    Kronecker,
    Hadamard,
    Full,
    /// A change of the bias only.
    Bias,
}

/// The names of a module's tensors, by role.
pub(super) type Parts = BTreeMap<Role, String>;

/// One module of an [`Index`].
#[derive(Debug)]
pub(super) struct Module {
    /// Its name in the file.
    pub name: String,
    pub place: Place,
    pub form: Form,
    /// The rank, if the form has one.
    pub rank: Option<usize>,
    /// Factor of the change.
    pub scale: f64,
    /// Whether its matrices are those of a 1×1 convolution.
    pub pointwise: bool,
    pub parts: Parts,
}

impl Module {
    /// Whether it changes biases.
    pub fn has_bias(&self) -> bool {
        self.parts.contains_key(&Role::Bias) || self.parts.contains_key(&Role::UpBias)
    }

    /// The kind of adapter, by its usual name.
    pub fn kind(&self) -> &'static str {
        match (self.form, self.parts.contains_key(&Role::Magnitude)) {
            (Form::LowRank, false) if self.place.convolution => "LoCon",
            (Form::LowRank, false) => "LoRA",
            (Form::LowRank, true) => "DoRA",
            (Form::Tucker, _) => "LoCon",
            (Form::Kronecker, _) => "LoKr",
            (Form::Hadamard, _) => "LoHa",
            (Form::Full, _) => "full change",
            (Form::Bias, _) => "bias change",
        }
    }
}

/// The adapter in a file.
#[derive(Debug)]
pub(super) struct Index<'a> {
    file: &'a TensorFile,
    modules: BTreeMap<String, Parts>,
    /// Names of tensors that kiln cannot apply, by reason.
    foreign: BTreeMap<&'static str, Vec<String>>,
    settings: Settings,
}

impl<'a> Index<'a> {
    /// Sorts the tensors of `file` by module.
    pub fn of(file: &'a TensorFile) -> Result<Self> {
        let (mut modules, mut foreign) = (BTreeMap::<_, Parts>::new(), BTreeMap::<_, Vec<_>>::new());
        for name in file.names() {
            match split(&name) {
                Some((module, role)) => {
                    if let Some(first) = modules.entry(module).or_default().insert(role, name) {
                        foreign.entry("belong to a second adapter on the same layers").or_default().push(first);
                    }
                }
                None => foreign.entry(reason(&name)).or_default().push(name),
            }
        }
        Ok(Self { settings: Settings::beside(file)?, file, modules, foreign })
    }

    /// Removes everything that belongs to text encoders, usable or not; returns the number of tensors.
    pub fn without_text_encoders(&mut self) -> usize {
        let count = |index: &Self| {
            index.modules.values().map(BTreeMap::len).sum::<usize>()
                + index.foreign.values().map(Vec::len).sum::<usize>()
        };
        let before = count(self);
        self.modules.retain(|name, _| !names::is_of_text(name));
        self.foreign.values_mut().for_each(|names| names.retain(|name| !names::is_of_text(name)));
        self.foreign.retain(|_, names| !names.is_empty());
        before - count(self)
    }

    /// Whether the file holds any part of an adapter, usable or not.
    pub fn is_adapter(&self) -> bool {
        let marks = ["lora_", "lokr_", "hada_", ".lora.", "_lora1.", "_lora2.", "oft_", "vera_", "glora"];
        let has_mark = |name: &String| marks.iter().any(|mark| name.contains(mark));
        let has_matrices = |parts: &Parts| parts.keys().any(|role| *role != Role::Alpha);
        self.modules.values().any(has_matrices) || self.foreign.values().flatten().any(has_mark)
    }

    /// The program whose layout the file has.
    pub fn layout(&self) -> &'static str {
        if self.modules.values().flat_map(BTreeMap::values).any(|name| name.contains(".processor.qkv_lora")) {
            return "XLabs";
        }
        let Some(module) = self.modules.keys().next() else { return "unknown" };
        names::layout(module).unwrap_or("bare names")
    }

    /// One line for each reason why tensors cannot be used.
    pub fn foreign(&self) -> Vec<String> {
        let line = |(reason, names): (&&str, &Vec<String>)| {
            let shown: Vec<_> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
            let more =
                if names.len() > shown.len() { format!(" and {} more", names.len() - shown.len()) } else { "".into() };
            format!("{}{more} {reason}", shown.join(", "))
        };
        self.foreign.iter().map(line).collect()
    }

    /// The complete modules, and one line for each of the others.
    pub fn modules(&self) -> Result<(Vec<Module>, Vec<String>)> {
        let (mut modules, mut problems) = (Vec::new(), Vec::new());
        for (name, parts) in &self.modules {
            match self.module(name, parts)? {
                Ok(module) => modules.push(module),
                Err(problem) => problems.push(format!("`{name}` {problem}")),
            }
        }
        Ok((modules, problems))
    }

    fn module(&self, name: &str, parts: &Parts) -> Result<std::result::Result<Module, String>> {
        let place = match names::place(name) {
            Ok(place) => place,
            Err(problem) => return Ok(Err(problem.into())),
        };
        if let Some(empty) = parts.values().find(|name| self.file.shape(name).is_some_and(|shape| shape.contains(&0))) {
            return Ok(Err(format!("has an empty tensor, `{empty}`")));
        }
        let found = self.form(parts).and_then(|found| self.bias(parts).map(|()| found));
        let (form, rank, pointwise) = match found {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let Place { part, layers, .. } = &place;
        let alpha = match (parts.get(&Role::Alpha), rank) {
            (Some(alpha), _) => {
                self.file.read_f32(alpha)?.into_vec::<f32>().ok().and_then(|v| v.first().copied()).map(f64::from)
            }
            (None, Some(rank)) => Some(self.settings.alpha(*part, &layers[0], rank)),
            (None, None) => Some(0.0), // nothing hangs on it
        };
        let Some(alpha) = alpha.filter(|alpha| alpha.is_finite()) else {
            return Ok(Err("has an alpha that is not a number".into()));
        };
        let scale = match (form, rank) {
            (_, Some(rank)) => alpha / rank as f64,
            (Form::Kronecker, None) => self.settings.scale_of_whole_factors(*part, &layers[0]),
            (_, None) => 1.0,
        };
        let parts = parts.clone();
        Ok(Ok(Module { name: name.into(), place, form, rank, scale, pointwise, parts }))
    }

    /// Checks the change of the bias in a module, if there is one: a vector.
    fn bias(&self, parts: &Parts) -> std::result::Result<(), String> {
        let changes: Vec<_> = [Role::Bias, Role::UpBias].iter().filter_map(|role| parts.get(role)).collect();
        match changes.as_slice() {
            [] => Ok(()),
            [name] => match self.file.shape(name) {
                Some([_]) => Ok(()),
                shape => Err(format!(
                    "changes a bias by a tensor of shape {:?}, which is not a vector",
                    shape.unwrap_or_default()
                )),
            },
            _ => Err("changes its bias twice".into()),
        }
    }

    /// The form of a module, its rank if it has one, and whether its matrices are those of a 1×1 convolution.
    fn form(&self, parts: &Parts) -> std::result::Result<(Form, Option<usize>, bool), String> {
        let has = |role: Role| parts.contains_key(&role);
        let shape = |role: Role| parts.get(&role).and_then(|name| self.file.shape(name)).unwrap_or_default();
        let whole = |a: Role, b: Role| -> std::result::Result<usize, String> {
            let (a, b) = (shape(a), shape(b));
            match (a, b) {
                ([_, columns, ..], [rank, _, ..]) if rank == columns && *rank > 0 => Ok(*rank),
                ([_, columns, ..], [rank, _, ..]) => {
                    Err(format!("has matrices of different rank, {rank} and {columns}"))
                }
                _ => Err(format!("has tensors of the shapes {a:?} and {b:?}, which are not matrices")),
            }
        };
        if has(Role::Down) || has(Role::Up) {
            if !(has(Role::Down) && has(Role::Up)) {
                return Err("has only one of its two matrices".into());
            }
            let (down, up) = (shape(Role::Down), shape(Role::Up));
            // `[rank, in]` and `[out, rank]`; a convolution has two more axes, which are 1 in the second matrix.
            if !(matches!(down.len(), 2 | 4) && matches!(up, [_, _] | [_, _, 1, 1])) {
                return Err(format!("has matrices of the shapes {down:?} and {up:?}, which fit no layer kiln knows"));
            }
            let rank = whole(Role::Up, Role::Down);
            let pointwise = matches!(down, [_, _, 1, 1]) && !has(Role::Mid);
            return match (has(Role::Mid), rank) {
                (false, rank) => Ok((Form::LowRank, Some(rank?), pointwise)),
                (true, _) => match (shape(Role::Mid), down, up) {
                    (&[a, b, _, _], &[rank, _, 1, 1], &[_, columns, ..]) if a == columns && b == rank && rank > 0 => {
                        Ok((Form::Tucker, Some(rank), false))
                    }
                    (mid, ..) => Err(format!("has a core of shape {mid:?} that does not fit its matrices")),
                },
            };
        }
        let is_kronecker = [Role::Left, Role::LeftA, Role::Right, Role::RightA].into_iter().any(has);
        if is_kronecker {
            let complete = (has(Role::Left) || has(Role::LeftA) && has(Role::LeftB))
                && (has(Role::Right) || has(Role::RightA) && has(Role::RightB));
            if !complete {
                return Err("lacks a factor of its Kronecker product".into());
            }
            let mut rank = if has(Role::Left) { None } else { Some(whole(Role::LeftA, Role::LeftB)?) };
            if !has(Role::Right) {
                rank = Some(match has(Role::RightCore) {
                    true => shape(Role::RightB).first().copied().filter(|rank| *rank > 0).ok_or("has no rank")?,
                    false => whole(Role::RightA, Role::RightB)?,
                });
            }
            let right = if has(Role::Right) { Role::Right } else { Role::RightB };
            return Ok((Form::Kronecker, rank, matches!(shape(right), [_, _, 1, 1])));
        }
        if [Role::FirstA, Role::FirstB, Role::SecondA, Role::SecondB].into_iter().any(has) {
            if ![Role::FirstA, Role::FirstB, Role::SecondA, Role::SecondB].into_iter().all(has) {
                return Err("lacks one of the four matrices of its Hadamard product".into());
            }
            let rank = match (has(Role::FirstCore), has(Role::SecondCore)) {
                (true, true) => shape(Role::FirstB).first().copied().filter(|rank| *rank > 0).ok_or("has no rank")?,
                (false, false) => {
                    whole(Role::SecondA, Role::SecondB)?;
                    whole(Role::FirstA, Role::FirstB)?
                }
                _ => return Err("has a core for one of its two products only".into()),
            };
            return Ok((Form::Hadamard, Some(rank), false));
        }
        match shape(Role::Full) {
            shape @ ([_, _] | [_, _, _, _]) => Ok((Form::Full, None, matches!(shape, [_, _, 1, 1]))),
            _ if has(Role::Full) => {
                Err("changes something other than the weight of a linear layer or convolution".into())
            }
            _ if has(Role::Bias) => Ok((Form::Bias, None, false)),
            _ => Err("has nothing that changes a weight".into()),
        }
    }
}
