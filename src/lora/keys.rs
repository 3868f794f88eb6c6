//! The key table between the two layouts of FLUX: diffusers' modules and those of the original code, which kohya's and ComfyUI's files
//! use. Adapters are read, written and inspected by it.

/// One module of the original layout and the diffusers modules it is made of.
#[derive(Debug)]
struct Row {
    /// Its dotted name inside its block.
    original: &'static str,
    /// Their dotted names inside their block: several if the original is a fused projection, in the order of its output rows.
    modules: &'static [&'static str],
}

const DOUBLE: &[Row] = &[
    Row { original: "img_attn.qkv", modules: &["attn.to_q", "attn.to_k", "attn.to_v"] },
    Row { original: "img_attn.proj", modules: &["attn.to_out.0"] },
    Row { original: "img_mlp.0", modules: &["ff.net.0.proj"] },
    Row { original: "img_mlp.2", modules: &["ff.net.2"] },
    Row { original: "img_mod.lin", modules: &["norm1.linear"] },
    Row { original: "txt_attn.qkv", modules: &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"] },
    Row { original: "txt_attn.proj", modules: &["attn.to_add_out"] },
    Row { original: "txt_mlp.0", modules: &["ff_context.net.0.proj"] },
    Row { original: "txt_mlp.2", modules: &["ff_context.net.2"] },
    Row { original: "txt_mod.lin", modules: &["norm1_context.linear"] },
];

const SINGLE: &[Row] = &[
    Row { original: "linear1", modules: &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"] },
    Row { original: "linear2", modules: &["proj_out"] },
    Row { original: "modulation.lin", modules: &["norm.linear"] },
];

const TOP: &[Row] = &[
    Row { original: "img_in", modules: &["x_embedder"] },
    Row { original: "txt_in", modules: &["context_embedder"] },
    Row { original: "time_in.in_layer", modules: &["time_text_embed.timestep_embedder.linear_1"] },
    Row { original: "time_in.out_layer", modules: &["time_text_embed.timestep_embedder.linear_2"] },
    Row { original: "guidance_in.in_layer", modules: &["time_text_embed.guidance_embedder.linear_1"] },
    Row { original: "guidance_in.out_layer", modules: &["time_text_embed.guidance_embedder.linear_2"] },
    Row { original: "vector_in.in_layer", modules: &["time_text_embed.text_embedder.linear_1"] },
    Row { original: "vector_in.out_layer", modules: &["time_text_embed.text_embedder.linear_2"] },
    Row { original: SWAPPED, modules: &["norm_out.linear"] },
    Row { original: "final_layer.linear", modules: &["proj_out"] },
];

/// The only module whose output halves differ in order: (shift, scale) in the original, (scale, shift) in diffusers.
const SWAPPED: &str = "final_layer.adaLN_modulation.1";

/// The tables by their list of blocks: its name in the original and in diffusers; empty outside the blocks.
const LEVELS: [(&str, &str, &[Row]); 3] = [
    ("double_blocks", "transformer_blocks", DOUBLE),
    ("single_blocks", "single_transformer_blocks", SINGLE),
    ("", "", TOP),
];

/// A module of the original layout with its diffusers layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Original {
    /// Its dotted name, such as `double_blocks.3.img_attn.qkv`.
    pub name: String,
    /// The names of the diffusers layers it is made of, in the order of its output rows.
    pub layers: Vec<String>,
    /// Whether the two halves of its output are swapped between the layouts.
    pub swapped: bool,
}

impl Original {
    fn of(row: &Row, (original, diffusers): (&str, &str), index: &str) -> Self {
        Self {
            name: join(original, index, row.original),
            layers: row.modules.iter().map(|module| join(diffusers, index, module)).collect(),
            swapped: row.original == SWAPPED,
        }
    }
}

/// The module of the original layout that the diffusers layer `layer` belongs to.
pub(super) fn original_of(layer: &str) -> Option<Original> {
    LEVELS.iter().find_map(|&(original, diffusers, rows)| {
        let (index, rest) = below(layer, diffusers)?;
        let row = rows.iter().find(|row| row.modules.contains(&rest))?;
        Some(Original::of(row, (original, diffusers), index))
    })
}

/// The module of the original layout called `module`, with dots or, as in kohya's files, underscores.
pub(super) fn original_named(module: &str) -> Option<Original> {
    LEVELS.iter().find_map(|&(original, diffusers, rows)| {
        let (index, rest) = below(module, original)?;
        let row = rows.iter().find(|row| flat(row.original) == flat(rest))?;
        Some(Original::of(row, (original, diffusers), index))
    })
}

/// The diffusers layers that the module of the original layout called `module` is made of, in the order of its output rows.
pub(crate) fn layers_of_original(module: &str) -> Option<Vec<String>> {
    original_named(module).map(|original| original.layers)
}

/// Whether the two halves of its output are swapped.
pub(crate) fn swaps_halves(module: &str) -> bool {
    original_named(module).is_some_and(|original| original.swapped)
}

/// The diffusers layer called `module`, where underscores may stand for the dots. Names that the table does not know are
/// not changed.
pub(super) fn layer_named(module: &str) -> String {
    let known = LEVELS.iter().find_map(|&(_, diffusers, rows)| {
        let (index, rest) = below(module, diffusers)?;
        let mut modules = rows.iter().flat_map(|row| row.modules);
        Some(join(diffusers, index, modules.find(|module| flat(module) == flat(rest))?))
    });
    known.unwrap_or_else(|| module.into())
}

/// The name with underscores for dots, as kohya writes it.
pub(super) fn flat(name: &str) -> String {
    name.replace('.', "_")
}

/// Splits off `stem` and a block number: `("3", "attn.to_q")` for `transformer_blocks.3.attn.to_q`.
fn below<'a>(module: &'a str, stem: &str) -> Option<(&'a str, &'a str)> {
    if stem.is_empty() {
        return Some(("", module));
    }
    let rest = module.strip_prefix(stem)?.strip_prefix(['.', '_'])?;
    let (index, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
    let rest = rest.strip_prefix(['.', '_'])?;
    (!index.is_empty()).then_some((index, rest))
}

fn join(stem: &str, index: &str, rest: &str) -> String {
    if stem.is_empty() { rest.into() } else { format!("{stem}.{index}.{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_from_both_sides_and_in_both_spellings() {
        let mut layers = 0;
        for (original, diffusers, rows) in LEVELS {
            for row in rows {
                let known = Original::of(row, (original, diffusers), "12");
                assert_eq!(original_named(&known.name), Some(known.clone()));
                assert_eq!(original_named(&flat(&known.name)), Some(known.clone()));
                for layer in &known.layers {
                    assert_eq!(original_of(layer), Some(known.clone()));
                    assert_eq!(&layer_named(&flat(layer)), layer);
                    layers += 1;
                }
            }
        }
        assert_eq!(layers, 14 + 6 + 10);
    }

    #[test]
    fn a_name_outside_the_table_has_no_original() {
        for name in ["transformer_blocks.0.attn.norm_q", "transformer_blocks.x.attn.to_q", "mid_block.attn", ""] {
            assert_eq!(original_of(name), None, "{name}");
            assert_eq!(original_named(name), None, "{name}");
            assert_eq!(layer_named(name), name);
        }
    }
}
