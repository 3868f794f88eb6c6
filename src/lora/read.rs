//! From adapter files of several programs to one form.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{Lora, LoraLayer, keys, matrix::Matrix, natural, unet};
use crate::{
    error::{Error, Result},
    weights::{TensorFile, read_json},
};

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// The spellings of the two matrices, each followed by `weight` or, as PEFT has it, `<adapter name>.weight`.
const MATRICES: [(&str, Role); 8] = [
    (".lora_A.", Role::Down),
    (".lora_B.", Role::Up),
    (".lora_down.", Role::Down),
    (".lora_up.", Role::Up),
    (".lora.down.", Role::Down),
    (".lora.up.", Role::Up),
    // Of diffusers' former attention processors.
    ("_lora.down.", Role::Down),
    ("_lora.up.", Role::Up),
];

/// The prefixes by which programs mark the model that a module is in, and what such a file is called.
const PREFIXES: [(&str, &str); 5] = [
    ("transformer.", "diffusers"),
    ("unet.", "diffusers"),
    ("diffusion_model.", "ComfyUI"),
    ("lora_unet_", "kohya"),
    ("lora_transformer_", "OneTrainer"),
];

/// PEFT's prefix, which may stand before one of the others.
const PEFT: &str = "base_model.model.";

/// Of residual blocks and changes of size in a UNet. The 1×1 convolutions around its attention are linear layers here.
const CONVOLUTION: &str = "are of convolution layers; kiln applies adapters to linear layers only";

/// Why a tensor cannot be used, by what its name, with a dot after it, contains.
const FOREIGN: [(&str, &str); 19] = [
    ("dora_scale", "are of a DoRA adapter, which scales whole rows of the weights; kiln applies plain LoRA"),
    ("lora_magnitude_vector", "are of a DoRA adapter, which scales whole rows of the weights; kiln applies plain LoRA"),
    ("lokr_", "are of a LoKr adapter; kiln applies plain LoRA"),
    ("hada_", "are of a LoHa adapter; kiln applies plain LoRA"),
    ("lora_mid", "are of a LoCon adapter with a core between its matrices; kiln applies plain LoRA"),
    ("oft_", "are of an OFT adapter; kiln applies plain LoRA"),
    ("text_encoder", "change a text encoder; kiln applies adapters to the denoiser only"),
    ("lora_te", "change a text encoder; kiln applies adapters to the denoiser only"),
    ("conditioner.", "change a text encoder; kiln applies adapters to the denoiser only"),
    ("conv", CONVOLUTION),
    ("skip_connection", CONVOLUTION),
    ("query_norm", "replace norm weights (a control LoRA), which low-rank matrices cannot do"),
    ("key_norm", "replace norm weights (a control LoRA), which low-rank matrices cannot do"),
    (".processor.qkv_", "are in x-flux's attention-processor layout, which kiln does not read"),
    (".processor.proj_", "are in x-flux's attention-processor layout, which kiln does not read"),
    (".bias.", "change biases; kiln applies low-rank changes of weights only"),
    (".diff.", "are full changes of weights; kiln applies low-rank changes only"),
    (".diff_b.", "change biases; kiln applies low-rank changes of weights only"),
    ("", "are no part of a LoRA"),
];

/// The tensors that make one module's adapter.
#[derive(Debug, Default)]
struct Parts(BTreeMap<Role, String>);

/// The adapter in a file as its names tell it, before any tensor is read.
#[derive(Debug)]
pub(super) struct Index<'a> {
    file: &'a TensorFile,
    modules: BTreeMap<String, Parts>,
    /// The names of tensors that are no part of a LoRA on the denoiser, by the reason.
    foreign: BTreeMap<&'static str, Vec<String>>,
    settings: Settings,
}

/// One module of an [`Index`].
#[derive(Debug)]
pub(super) struct Module {
    /// The diffusers layers it acts on: several if the file's layout fuses them.
    pub layers: Vec<String>,
    pub rank: usize,
    pub alpha: f64,
    /// Whether its output halves must change places.
    swapped: bool,
    /// Whether its matrices are those of a 1×1 convolution.
    pointwise: bool,
    down: String,
    up: String,
}

impl<'a> Index<'a> {
    /// Sorts the names of `file`.
    pub fn of(file: &'a TensorFile) -> Result<Self> {
        let (mut modules, mut foreign) = (BTreeMap::<_, Parts>::new(), BTreeMap::<_, Vec<_>>::new());
        for name in file.names() {
            match split(&name) {
                // A module of a text encoder is complete and yet of no use.
                Some((module, role)) if reason(module).is_none() => {
                    let parts = &mut modules.entry(module.to_string()).or_default().0;
                    if let Some(first) = parts.insert(role, name) {
                        foreign.entry("are of a second adapter on the same layers").or_default().push(first);
                    }
                }
                _ => foreign.entry(reason(&name).unwrap_or(FOREIGN[FOREIGN.len() - 1].1)).or_default().push(name),
            }
        }
        Ok(Self { settings: Settings::beside(file)?, file, modules, foreign })
    }

    /// Whether the file holds anything of an adapter, usable or not.
    pub fn is_adapter(&self) -> bool {
        let marks = ["lora_", "lokr_", "hada_", ".lora.", "_lora1.", "_lora2."];
        !self.modules.is_empty() || self.foreign.values().flatten().any(|name| marks.iter().any(|m| name.contains(m)))
    }

    /// The program whose layout the file has.
    pub fn layout(&self) -> &'static str {
        let Some(module) = self.modules.keys().next() else { return "unknown" };
        if module.starts_with(PEFT) { "PEFT" } else { prefix(module).map_or("bare names", |(_, layout)| layout) }
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
        let (Some(down), Some(up)) = (parts.0.get(&Role::Down), parts.0.get(&Role::Up)) else {
            return Ok(Err("has only one of its two matrices".into()));
        };
        let shape = |name| self.file.shape(name).unwrap_or_default();
        // `[rank, in]` and `[out, rank]`; on a 1×1 convolution with two more axes.
        let (&[rank, _] | &[rank, _, 1, 1], &[_, columns] | &[_, columns, 1, 1]) = (shape(down), shape(up)) else {
            return Ok(Err(format!(
                "is on no linear layer or 1×1 convolution: its matrices have the shapes {:?} and {:?}, not two axes (LoCon?)",
                shape(down),
                shape(up)
            )));
        };
        let pointwise = shape(down).len() == 4;
        if rank != columns || rank == 0 {
            return Ok(Err(format!("has matrices of different rank, {rank} and {columns}")));
        }
        let bare = name.strip_prefix(PEFT).unwrap_or(name);
        let (bare, underscored) = match prefix(bare) {
            Some((prefix, _)) => (&bare[prefix.len()..], prefix.ends_with('_')),
            None => (bare, false),
        };
        let (layers, swapped) = match (keys::original_named(bare), unet::layer_named(bare)) {
            (Some(original), _) => (original.layers, original.swapped),
            (None, Some(layer)) => (vec![layer], false),
            (None, None) => (vec![keys::layer_named(bare)], false),
        };
        // Without dots there is no telling where a layer of an unknown model begins and ends.
        if underscored && keys::original_of(&layers[0]).is_none() && unet::layer_named(&layers[0]).is_none() {
            return Ok(Err("is no layer of FLUX or of Stable Diffusion's UNet that kiln knows".into()));
        }
        let alpha = match parts.0.get(&Role::Alpha) {
            Some(alpha) => {
                self.file.read_f32(alpha)?.into_vec::<f32>().ok().and_then(|v| v.first().copied()).map(f64::from)
            }
            None => Some(self.settings.alpha(&layers[0], rank)),
        };
        Ok(match alpha.filter(|alpha| alpha.is_finite()) {
            Some(alpha) => Ok(Module { layers, rank, alpha, swapped, pointwise, down: down.clone(), up: up.clone() }),
            None => Err("has an alpha that is no number".into()),
        })
    }
}

impl Lora {
    /// Reads an adapter file as diffusers, PEFT, kohya's scripts, ComfyUI and the trainers that follow them write it, in
    /// f32, f16 or bf16. Fused layers come apart, and every scale is that of the program the file is for: alpha from the
    /// file, from diffusers' metadata, or from PEFT's `adapter_config.json` beside it; else alpha = rank. The tensors are on
    /// the CPU.
    ///
    /// # Errors
    /// The file is broken or holds no LoRA; or parts of it cannot be applied (text encoders, DoRA, convolutions, …), which
    /// are listed: nothing is dropped silently.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let index = Index::of(&file)?;
        if !index.is_adapter() {
            return Err(Error::file(file.path(), "holds no LoRA").hint("`kiln inspect` says what a file holds"));
        }
        let (modules, mut problems) = index.modules()?;
        problems.extend(index.foreign());
        let mut layers = BTreeMap::new();
        for module in &modules {
            let (down, up) =
                (Matrix::from_data(file.read_f32(&module.down)?), Matrix::from_data(file.read_f32(&module.up)?));
            if !(down.is_finite() && up.is_finite()) {
                problems.push(format!("`{}` or `{}` holds values that are not finite", module.down, module.up));
                continue;
            }
            let up = if module.swapped { up.halves_swapped() } else { up };
            match unfused(module, down, up) {
                Err(problem) => problems.push(format!("`{}` {problem}", module.up)),
                Ok(parts) => {
                    for layer in parts {
                        if layers.contains_key(&layer.name) {
                            problems.push(format!("`{}` changes layer `{}` a second time", module.up, layer.name));
                        }
                        _ = layers.insert(layer.name.clone(), layer);
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(Error::many(file.path(), problems)
                .hint("kiln applies all of an adapter or nothing; use a version of it without these parts"));
        }
        let mut layers: Vec<_> = layers.into_values().collect();
        layers.sort_by(|one, other| natural(&one.name, &other.name));
        let mut metadata = file.metadata();
        metadata.retain(|key, _| key != "format" && key != ADAPTER_METADATA);
        Ok(Self { layers, metadata })
    }
}

/// The layers of one module of a file. Where the layout fuses several, `up` is either block-diagonal, one block for each
/// layer, and then `down` is divided as `up`'s columns are; or all layers share `down`.
fn unfused(module: &Module, down: Matrix, up: Matrix) -> std::result::Result<Vec<LoraLayer>, String> {
    let scale = module.alpha / module.rank as f64;
    let layer = |name: &String, a: Matrix, b: Matrix| {
        let alpha = scale * a.rows as f64;
        LoraLayer { name: name.clone(), a: a.into_tensor(), b: b.into_tensor(), alpha, pointwise: module.pointwise }
    };
    let count = module.layers.len();
    if let [name] = module.layers.as_slice() {
        return Ok(vec![layer(name, down, up)]);
    }
    // Queries, keys and values are as wide as the input; what is left is the feed-forward part of a single block.
    let width = down.columns;
    let rest = up.rows.checked_sub(3 * width).filter(|&rest| (rest == 0) == (count == 3));
    let rest = rest.ok_or_else(|| format!("has {} rows, which are not {count} layers of width {width}", up.rows))?;
    let heights = [width, width, width, rest];
    let tops = [0, width, 2 * width, 3 * width];
    let parts = || module.layers.iter().zip(tops).zip(heights).enumerate();

    let rank = module.rank / count;
    let block = |i: usize| i * rank..(i + 1) * rank;
    let zero = |row: usize, i: usize| {
        up.row(row).iter().enumerate().all(|(column, &v)| v == 0.0 || block(i).contains(&column))
    };
    let diagonal = module.rank.is_multiple_of(count)
        && parts().all(|(i, ((_, top), height))| (top..top + height).all(|row| zero(row, i)));
    let layers = parts().filter_map(|(i, ((name, top), height))| {
        let rows = top..top + height;
        if !diagonal {
            return Some(layer(name, down.clone(), up.block(rows, 0..module.rank)));
        }
        let (a, b) = (down.block(block(i), 0..width), up.block(rows, block(i)));
        // Padding to a common rank is taken off. A layer that was never trained is nothing but padding.
        let used = (0..rank).rev().find(|&k| a.row(k).iter().any(|&v| v != 0.0) || b.column(k).any(|v| v != 0.0));
        let rank = used? + 1;
        Some(layer(name, a.block(0..rank, 0..width), b.block(0..height, 0..rank)))
    });
    Ok(layers.collect())
}

/// Divides a tensor's name into module and role; nothing for names that no LoRA has.
fn split(name: &str) -> Option<(&str, Role)> {
    if let Some(module) = name.strip_suffix(".alpha") {
        return Some((module, Role::Alpha));
    }
    MATRICES.iter().find_map(|&(mark, role)| {
        let (module, rest) = name.split_once(mark)?;
        let adapter = rest.strip_suffix("weight")?;
        let plain = adapter.is_empty() || adapter.strip_suffix('.').is_some_and(|name| !name.contains('.'));
        plain.then_some((module, role))
    })
}

fn prefix(module: &str) -> Option<(&'static str, &'static str)> {
    PREFIXES.into_iter().find(|(prefix, _)| module.starts_with(prefix))
}

/// Why a name cannot be part of a LoRA on the denoiser, if it cannot.
fn reason(name: &str) -> Option<&'static str> {
    let (_, known) = FOREIGN.split_last()?;
    let name = format!("{name}.");
    known.iter().find(|(mark, _)| name.contains(mark)).map(|(_, reason)| *reason)
}

/// The key of diffusers' metadata: PEFT's `LoraConfig` as JSON, its keys prefixed with the component.
pub(super) const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// What stands beside the tensors about their scale, in PEFT's words.
#[derive(Debug, Default)]
struct Settings {
    alpha: Option<f64>,
    patterns: Vec<(String, f64)>,
    rank_stabilized: bool,
}

impl Settings {
    /// From the file's own metadata; else, for PEFT's own layout, from `adapter_config.json` in the same folder.
    fn beside(file: &TensorFile) -> Result<Self> {
        let metadata = file.metadata();
        if let Some(text) = metadata.get(ADAPTER_METADATA) {
            let whole: Value = serde_json::from_str(text)
                .map_err(|e| Error::file(file.path(), format!("metadata `{ADAPTER_METADATA}` is not JSON ({e})")))?;
            let component = ["transformer.", "unet.", ""].into_iter().find(|c| whole.get(format!("{c}r")).is_some());
            return Self::of(file.path(), &whole, component.unwrap_or_default());
        }
        let beside = file.path().with_file_name("adapter_config.json");
        if file.names().iter().any(|name| name.starts_with(PEFT)) && beside.is_file() {
            return Self::of(&beside, &read_json(&beside)?, "");
        }
        Ok(Self::default())
    }

    fn of(path: &Path, whole: &Value, component: &str) -> Result<Self> {
        let get = |key: &str| &whole[format!("{component}{key}")];
        // What another rule of scaling, or another kind of adapter, would hang on is not taken for something else.
        let unusable = |key: &str, wanted: &str| Error::file(path, format!("`{key}` is {}, not {wanted}", get(key)));
        for (key, fits, wanted) in [
            ("peft_type", matches!(get("peft_type"), Value::Null) || get("peft_type") == "LORA", "\"LORA\""),
            ("use_dora", matches!(get("use_dora"), Value::Null | Value::Bool(false)), "false: DoRA is not supported"),
            ("lora_bias", matches!(get("lora_bias"), Value::Null | Value::Bool(false)), "false"),
            ("lora_alpha", get("lora_alpha").is_null() || get("lora_alpha").is_number(), "a number"),
            ("use_rslora", get("use_rslora").is_null() || get("use_rslora").is_boolean(), "true or false"),
            ("alpha_pattern", get("alpha_pattern").is_null() || get("alpha_pattern").is_object(), "an object"),
        ] {
            if !fits {
                return Err(unusable(key, wanted).hint("export the adapter again with alpha = rank"));
            }
        }
        let mut patterns = Vec::new();
        for (pattern, alpha) in get("alpha_pattern").as_object().into_iter().flatten() {
            let name = pattern.replace("\\.", ".");
            let plain = name.trim_start_matches('^').trim_end_matches('$');
            let alpha = alpha.as_f64().filter(|_| !plain.contains(['*', '+', '?', '[', '(', '{', '|', '\\']));
            let alpha = alpha.ok_or_else(|| {
                Error::file(path, format!("`alpha_pattern` has `{pattern}`, which kiln cannot read"))
                    .hint("export the adapter again with alpha = rank")
            })?;
            patterns.push((name.trim_end_matches('$').to_string(), alpha));
        }
        let rank_stabilized = get("use_rslora").as_bool().unwrap_or_default();
        Ok(Self { alpha: get("lora_alpha").as_f64(), patterns, rank_stabilized })
    }

    /// The alpha of a layer: a pattern is the end of a name at a dot, or with `^` the whole name. Rank-stabilized scaling is
    /// `alpha / √rank`, which becomes an alpha for `alpha / rank` here.
    fn alpha(&self, layer: &str, rank: usize) -> f64 {
        let matches = |pattern: &str| match pattern.strip_prefix('^') {
            Some(whole) => layer == whole,
            None => layer.strip_suffix(pattern).is_some_and(|front| front.is_empty() || front.ends_with('.')),
        };
        let own = self.patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, alpha)| *alpha);
        match own.or(self.alpha) {
            Some(alpha) if self.rank_stabilized => alpha * (rank as f64).sqrt(),
            Some(alpha) => alpha,
            None => rank as f64,
        }
    }
}
