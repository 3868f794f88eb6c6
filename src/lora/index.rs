//! An adapter file as the names and shapes of its tensors tell it, before any is read.

use std::collections::BTreeMap;

use super::{
    names::{self, Place},
    settings::Settings,
};
use crate::{error::Result, weights::TensorFile};

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Down,
    Up,
    /// The core between the two (LoCon with a Tucker decomposition).
    Mid,
    Alpha,
    /// Row lengths (DoRA).
    Magnitude,
    /// A factor of a Kronecker product (LoKr), whole or as two matrices, perhaps with a core.
    Left,
    LeftA,
    LeftB,
    Right,
    RightA,
    RightB,
    RightCore,
    /// The two low-rank pairs whose products are multiplied element by element (LoHa), perhaps with cores.
    FirstA,
    FirstB,
    FirstCore,
    SecondA,
    SecondB,
    SecondCore,
    /// The change itself.
    Full,
}

/// The spellings of the matrices, each followed by `weight` or, as PEFT has it, `<adapter name>.weight`.
const MATRICES: [(&str, Role); 11] = [
    (".lora_A.", Role::Down),
    (".lora_B.", Role::Up),
    (".lora_down.", Role::Down),
    (".lora_up.", Role::Up),
    (".lora_mid.", Role::Mid),
    (".lora.down.", Role::Down),
    (".lora.up.", Role::Up),
    // Of diffusers' former attention processors.
    ("_lora.down.", Role::Down),
    ("_lora.up.", Role::Up),
    // Of text encoders in diffusers' former files.
    (".lora_linear_layer.down.", Role::Down),
    (".lora_linear_layer.up.", Role::Up),
];

/// The spellings of what stands at the end of a name, perhaps with `.weight` or `.<adapter name>`, as PEFT has it.
const ENDS: [(&str, Role); 17] = [
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".lokr_w1", Role::Left),
    (".lokr_w1_a", Role::LeftA),
    (".lokr_w1_b", Role::LeftB),
    (".lokr_w2", Role::Right),
    (".lokr_w2_a", Role::RightA),
    (".lokr_w2_b", Role::RightB),
    (".lokr_t2", Role::RightCore),
    (".hada_w1_a", Role::FirstA),
    (".hada_w1_b", Role::FirstB),
    (".hada_t1", Role::FirstCore),
    (".hada_w2_a", Role::SecondA),
    (".hada_w2_b", Role::SecondB),
    (".hada_t2", Role::SecondCore),
    (".diff", Role::Full),
    (".alpha", Role::Alpha),
];

/// The layers that XLabs' attention processors change, below a block of the original code: the streams of the image (1) and of
/// the text (2), and those of single blocks.
const XLABS: [(&str, &str); 6] = [
    ("qkv_lora1", "img_attn.qkv"),
    ("qkv_lora2", "txt_attn.qkv"),
    ("proj_lora1", "img_attn.proj"),
    ("proj_lora2", "txt_attn.proj"),
    ("qkv_lora", "linear1.qkv"),
    ("proj_lora", "linear2"),
];

/// Why a tensor cannot be used, by what its name, with a dot after it, contains.
const FOREIGN: [(&str, &str); 14] = [
    ("oft_", "are of an OFT adapter, which kiln does not read"),
    ("boft_", "are of a BOFT adapter, which kiln does not read"),
    ("vera_", "are of a VeRA adapter, which kiln does not read"),
    ("glora", "are of a GLoRA adapter, which kiln does not read"),
    (".ia3_", "are of an IA³ adapter, which kiln does not read"),
    (".on_input.", "are of an IA³ adapter, which kiln does not read"),
    ("conditioner.", "are in the layout of Stable Diffusion XL's original code, which kiln does not read"),
    ("query_norm", "replace norm weights (a control LoRA), which changes of linear layers cannot do"),
    ("key_norm", "replace norm weights (a control LoRA), which changes of linear layers cannot do"),
    (".bias.", "change biases; kiln applies changes of weights only"),
    (".diff_b.", "change biases; kiln applies changes of weights only"),
    (".w_norm.", "change norms; kiln applies changes of linear layers and convolutions only"),
    (".b_norm.", "change norms; kiln applies changes of linear layers and convolutions only"),
    ("", "do not belong to a LoRA"),
];

/// The kind of change that a module holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    LowRank,
    Tucker,
    Kronecker,
    Hadamard,
    Full,
}

/// The tensors that make one module's adapter.
pub(super) type Parts = BTreeMap<Role, String>;

/// One module of an [`Index`].
#[derive(Debug)]
pub(super) struct Module {
    /// As the file has it.
    pub name: String,
    pub place: Place,
    pub form: Form,
    /// Where it has one.
    pub rank: Option<usize>,
    /// What the change is multiplied by.
    pub scale: f64,
    /// Whether its matrices are those of a 1×1 convolution.
    pub pointwise: bool,
    pub parts: Parts,
}

impl Module {
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
        }
    }
}

/// The adapter in a file.
#[derive(Debug)]
pub(super) struct Index<'a> {
    file: &'a TensorFile,
    modules: BTreeMap<String, Parts>,
    /// The names of tensors that are no part of an adapter kiln reads, by the reason.
    foreign: BTreeMap<&'static str, Vec<String>>,
    settings: Settings,
}

impl<'a> Index<'a> {
    /// Sorts the names of `file`.
    pub fn of(file: &'a TensorFile) -> Result<Self> {
        let (mut modules, mut foreign) = (BTreeMap::<_, Parts>::new(), BTreeMap::<_, Vec<_>>::new());
        for name in file.names() {
            match split(&name) {
                Some((module, role)) => {
                    if let Some(first) = modules.entry(module).or_default().insert(role, name) {
                        foreign.entry("are of a second adapter on the same layers").or_default().push(first);
                    }
                }
                None => foreign.entry(reason(&name)).or_default().push(name),
            }
        }
        Ok(Self { settings: Settings::beside(file)?, file, modules, foreign })
    }

    /// Takes out what belongs to text encoders, usable or not: the number of tensors.
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

    /// Whether the file holds anything of an adapter, usable or not.
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

    /// What cannot be used, one line for each reason.
    pub fn foreign(&self) -> Vec<String> {
        let line = |(reason, names): (&&str, &Vec<String>)| {
            let shown: Vec<_> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
            let more =
                if names.len() > shown.len() { format!(" and {} more", names.len() - shown.len()) } else { "".into() };
            format!("{}{more} {reason}", shown.join(", "))
        };
        self.foreign.iter().map(line).collect()
    }

    /// The modules that are complete, and a line about each that is not.
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
        let (form, rank, pointwise) = match self.form(parts) {
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
                _ => Err(format!("has tensors of the shapes {a:?} and {b:?}, which are no matrices")),
            }
        };
        if has(Role::Down) || has(Role::Up) {
            if !(has(Role::Down) && has(Role::Up)) {
                return Err("has only one of its two matrices".into());
            }
            let (down, up) = (shape(Role::Down), shape(Role::Up));
            // `[rank, in]` and `[out, rank]`; of a convolution with two more axes, of which the second matrix has none to speak of.
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
            _ => Err("has nothing that changes a weight".into()),
        }
    }
}

/// Divides a tensor's name into module and role; nothing for names that no adapter has.
fn split(name: &str) -> Option<(String, Role)> {
    if let Some((block, rest)) = name.split_once(".processor.")
        && let Some((kind, matrix)) = rest.split_once('.')
        && let Some((_, layer)) = XLABS.iter().find(|(spelling, _)| *spelling == kind)
    {
        let role = match matrix {
            "down.weight" => Role::Down,
            "up.weight" => Role::Up,
            _ => return None,
        };
        return Some((format!("{block}.{layer}"), role));
    }
    let plain = |adapter: &str| {
        adapter.is_empty() || adapter.strip_suffix('.').is_some_and(|name| !name.is_empty() && !name.contains('.'))
    };
    let matrix = MATRICES.iter().find_map(|&(mark, role)| {
        let (module, rest) = name.split_once(mark)?;
        plain(rest.strip_suffix("weight")?).then(|| (module.to_string(), role))
    });
    matrix.or_else(|| {
        ENDS.iter().find_map(|&(mark, role)| {
            let (module, rest) = name.rsplit_once(mark)?;
            let named = rest.strip_prefix('.').map(|rest| rest.strip_suffix(".weight").unwrap_or(rest));
            let fits = rest.is_empty() || role != Role::Alpha && named.is_some_and(|name| !name.contains('.'));
            fits.then(|| (module.to_string(), role))
        })
    })
}

/// Why a name cannot be part of an adapter that kiln reads.
fn reason(name: &str) -> &'static str {
    let name = format!("{name}.");
    let found = FOREIGN.iter().find(|(mark, _)| name.contains(mark));
    found.map_or(FOREIGN[FOREIGN.len() - 1].1, |(_, reason)| reason)
}
