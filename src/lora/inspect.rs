//! A description of any safetensors file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Denoiser, Format, Part,
    index::{Index, Module},
    programs::{Reader, readers, said},
    read::adapter_file,
};
use crate::{
    error::{Result, cut},
    nn::below,
    notice::grouped,
    weights::TensorFile,
};

/// An optimizer's tensors are named after those of the adapter or model.
const OPTIMIZER: (&str, &[&str]) = ("optimizer state", &["exp_avg"]);

/// Kinds of files, each with parts of tensor names that identify it. The first match counts; every shard of a model matches.
const KINDS: [(&str, &[&str]); 14] = [
    OPTIMIZER,
    ("FLUX transformer, original layout", &["double_blocks.", "single_blocks."]),
    (
        "VAE, layout of diffusers",
        &["encoder.down_blocks.", "decoder.up_blocks.", "encoder.mid_block.", "decoder.mid_block."],
    ),
    ("VAE, original layout", &["encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid."]),
    ("UNet, original layout", &["input_blocks.", "middle_block.", "output_blocks."]),
    ("UNet, layout of diffusers", &["down_blocks.", "mid_block.", "up_blocks."]),
    (
        "FLUX transformer, layout of diffusers",
        &["transformer_blocks.", "time_text_embed.", "norm_out.", "context_embedder."],
    ),
    ("CLIP text encoder", &["text_model.", "encoder.layers.", "token_embedding.", "position_embedding."]),
    ("T5 text encoder", &["encoder.block.", "encoder.final_layer_norm.", "shared.weight"]),
    ("VAE", &["encoder.conv_", "decoder.conv_", "quant_conv."]),
    // Files that kiln writes.
    ("cached latents of kiln", &["moments"]),
    ("cached text embeddings of kiln", &["pooled"]),
    ("prompt ids", &["clip"]),
    ("latents", &["latents", "noise"]),
];

/// The result of [`inspect`].
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// In words: `LoRA`, `VAE, layout of diffusers`, `unknown`, …
    pub kind: String,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of parameters.
    pub parameters: usize,
    /// The number of tensors of each dtype.
    pub dtypes: BTreeMap<String, usize>,
    /// Its adapter, if it is one.
    pub lora: Option<LoraSummary>,
    /// The metadata in its header.
    pub metadata: BTreeMap<String, String>,
}

/// The adapter in a file.
#[derive(Clone, Debug, Serialize)]
pub struct LoraSummary {
    /// The layout: diffusers, PEFT, kohya, LyCORIS, ComfyUI, OneTrainer, XLabs, or bare names.
    pub format: String,
    /// The number of modules of each kind: LoRA, LoCon (of convolutions), DoRA, LoKr, LoHa, full change, bias change.
    pub kinds: BTreeMap<String, usize>,
    /// The number of modules of each rank. A format with fused layers has their common rank.
    pub ranks: BTreeMap<usize, usize>,
    /// The number of modules of each alpha.
    pub alphas: BTreeMap<String, usize>,
    /// The layers by diffusers' names: for each kind of block (`transformer_blocks`, `down_blocks.attentions`; empty outside the blocks)
    /// the number of blocks with each layer.
    pub targets: BTreeMap<String, BTreeMap<String, usize>>,
    /// The parts that kiln cannot apply, with reasons.
    pub problems: Vec<String>,
    /// The programs that load it, for layouts where this is known.
    pub readers: Vec<Reader>,
}

/// Describes any safetensors file by names, shapes and metadata; of the tensors only scalars are read.
///
/// # Errors
/// The file is missing, cut short or not a safetensors file.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let file = TensorFile::open(adapter_file(path.as_ref())?)?;
    let names = file.names();
    let index = Index::of(&file)?;
    let has = |mark: &&str| names.iter().any(|name| name.contains(mark));
    let is_adapter = index.is_adapter() && !OPTIMIZER.1.iter().any(has);
    let lora = if is_adapter { Some(LoraSummary::of(&index)?) } else { None };
    let known = KINDS.iter().find(|(_, marks)| marks.iter().any(has));
    let kind = if lora.is_some() { "LoRA" } else { known.map_or("unknown", |(kind, _)| kind) };
    let parameters =
        names.iter().filter_map(|name| file.shape(name)).map(|shape| shape.iter().product::<usize>()).sum();
    let mut dtypes = BTreeMap::new();
    for dtype in names.iter().filter_map(|name| file.dtype(name)) {
        *dtypes.entry(dtype).or_default() += 1;
    }
    let (path, metadata) = (file.path().into(), file.metadata());
    Ok(Inspection { path, kind: kind.into(), tensors: names.len(), parameters, dtypes, lora, metadata })
}

impl LoraSummary {
    fn of(index: &Index) -> Result<Self> {
        let (modules, mut problems) = index.modules()?;
        problems.extend(index.foreign());
        let (mut kinds, mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut targets = BTreeMap::<_, BTreeMap<_, _>>::new();
        for module in &modules {
            *kinds.entry(module.kind().to_string()).or_default() += 1;
            if let Some(rank) = module.rank {
                *ranks.entry(rank).or_default() += 1;
                *alphas.entry((module.scale * rank as f64).to_string()).or_default() += 1;
            }
            let Module { place, .. } = module;
            for (kind, target) in place.layers.iter().map(|layer| in_block(&below(place.part.folder(), layer))) {
                *targets.entry(kind).or_default().entry(target).or_default() += 1;
            }
        }
        let layout = index.layout();
        let names: Vec<&str> = modules.iter().flat_map(|module| &module.place.layers).map(String::as_str).collect();
        let is_plain = kinds.keys().all(|kind| kind == "LoRA") && !modules.iter().any(Module::has_bias);
        let is_plain = is_plain && problems.is_empty();
        let format = match layout {
            "diffusers" => Some(Format::Diffusers),
            "kohya" => Some(Format::Kohya),
            "ComfyUI" => Some(Format::ComfyUi),
            _ => None,
        };
        let of_denoiser = modules.iter().all(|module| module.place.part == Part::Denoiser);
        let known = format.filter(|_| is_plain && of_denoiser);
        let denoiser = Denoiser::guess(names.iter().copied());
        let readers = known.map_or_else(Vec::new, |format| readers(denoiser, names.iter().copied(), format));
        Ok(Self { format: layout.into(), kinds, ranks, alphas, targets, problems, readers })
    }
}

/// The kind of block and the name inside it, split at the number after the last list of blocks, whose name is a plural:
/// `transformer_blocks` and `attn.to_q`, `down_blocks.attentions` and `proj_in`.
fn in_block(layer: &str) -> (String, String) {
    let parts: Vec<_> = layer.split('.').collect();
    let number = |part: &str| part.parse::<usize>().is_ok();
    let list = parts.windows(2).rposition(|pair| pair[0].ends_with('s') && number(pair[1]));
    match list.filter(|list| list + 2 < parts.len()) {
        Some(list) => {
            let kind: Vec<_> = parts[..=list].iter().copied().filter(|part| !number(part)).collect();
            (kind.join("."), parts[list + 2..].join("."))
        }
        None => (String::new(), layer.into()),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.kind)?;
        writeln!(f, "  tensors     {} ({})", self.tensors, counted(&self.dtypes))?;
        writeln!(f, "  parameters  {}", grouped(self.parameters))?;
        if let Some(lora) = &self.lora {
            writeln!(f, "  format      {}", lora.format)?;
            writeln!(f, "  kind        {}", counted(&lora.kinds))?;
            writeln!(f, "  rank        {}", counted(&lora.ranks))?;
            writeln!(f, "  alpha       {}", counted(&lora.alphas))?;
            for (kind, targets) in &lora.targets {
                let counts: BTreeSet<_> = targets.values().collect();
                let kind = if kind.is_empty() { "outside blocks" } else { kind };
                writeln!(f, "  {kind}")?;
                for count in counts {
                    let names: Vec<_> =
                        targets.iter().filter(|(_, c)| *c == count).map(|(name, _)| name.as_str()).collect();
                    writeln!(f, "    {count} × {}", names.join(", "))?;
                }
            }
            let all = lora.targets.values().flat_map(BTreeMap::values).sum();
            said(&lora.readers, all).iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            cut(&lora.problems).iter().try_for_each(|problem| writeln!(f, "  problem: {problem}"))?;
        }
        for (key, value) in &self.metadata {
            let line: String = value.split_whitespace().collect::<Vec<_>>().join(" ");
            let short: String = line.chars().take(160).collect();
            writeln!(f, "  {key} = {short}{}", if short.len() < line.len() { " …" } else { "" })?;
        }
        Ok(())
    }
}

/// `16`, or `16 (200), 8 (12)` where there are several.
fn counted(counts: &BTreeMap<impl fmt::Display, usize>) -> String {
    let several = counts.len() > 1;
    let one = |(value, count): (_, &usize)| if several { format!("{value} ({count})") } else { format!("{value}") };
    if counts.is_empty() { "none".into() } else { counts.iter().map(one).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_grouped_by_the_block_they_are_in() {
        let pair = |name| in_block(name);
        assert_eq!(pair("transformer_blocks.3.attn.to_out.0"), ("transformer_blocks".into(), "attn.to_out.0".into()));
        let deep = "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj";
        assert_eq!(pair(deep), ("down_blocks.attentions.transformer_blocks".into(), "ff.net.0.proj".into()));
        assert_eq!(pair("mid_block.resnets.1.time_emb_proj"), ("mid_block.resnets".into(), "time_emb_proj".into()));
        assert_eq!(pair("norm_out.linear"), (String::new(), "norm_out.linear".into()));
        assert_eq!(pair("to_out.0"), (String::new(), "to_out.0".into()));
    }
}
