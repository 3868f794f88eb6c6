//! From module names in adapter files, in the spellings of all programs, to layers of a model.

use super::{Part, convolution, keys, text, unet};

/// The layers that a module changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub part: Part,
    /// Their names in diffusers or transformers: several if the file's layout fuses them, in the order of its output rows.
    pub layers: Vec<String>,
    /// Whether the two halves of the output are swapped.
    pub swapped: bool,
    /// Whether it is a convolution here: of more than one pixel, or pointwise but not a linear layer.
    pub convolution: bool,
}

/// The meaning of a prefix.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    /// None: wrappers of PyTorch and PEFT.
    Wrapper,
    Denoiser,
    /// A text encoder; its layers show which.
    Text,
    /// The same, but a CLIP is the second one, that of Stable Diffusion XL.
    SecondText,
}

/// Prefixes of layer names, in any order and nesting, with the layout that each indicates.
const PREFIXES: [(&str, Mark, &str); 21] = [
    (PEFT, Mark::Wrapper, "PEFT"),
    ("base_model.", Mark::Wrapper, ""),
    ("model.", Mark::Wrapper, ""),
    ("module.", Mark::Wrapper, ""),
    ("_orig_mod.", Mark::Wrapper, ""),
    ("transformer.", Mark::Denoiser, "diffusers"),
    ("unet.", Mark::Denoiser, "diffusers"),
    ("diffusion_model.", Mark::Denoiser, "ComfyUI"),
    ("lora_unet_", Mark::Denoiser, "kohya"),
    ("lora_transformer_", Mark::Denoiser, "OneTrainer"),
    ("lycoris_", Mark::Denoiser, "LyCORIS"),
    ("text_encoder.", Mark::Text, "diffusers"),
    ("text_encoder_2.", Mark::SecondText, "diffusers"),
    ("lora_te_", Mark::Text, "kohya"),
    ("lora_te1_", Mark::Text, "kohya"),
    ("lora_te2_", Mark::SecondText, "kohya"),
    ("lora_te3_", Mark::Text, "kohya"),
    ("clip_l.", Mark::Text, "OneTrainer"),
    ("clip_g.", Mark::SecondText, "OneTrainer"),
    ("t5.", Mark::Text, "OneTrainer"),
    ("t5xxl.", Mark::Text, "ComfyUI"),
];

/// PEFT's prefix.
pub(super) const PEFT: &str = "base_model.model.";

/// A name without its prefixes, and their meaning.
struct Peeled<'a> {
    bare: &'a str,
    mark: Mark,
    /// The layout that the first telling prefix indicates.
    layout: Option<&'static str>,
    /// Whether a prefix ended in an underscore, so that underscores stand for dots.
    flat: bool,
}

fn peel(module: &str) -> Peeled<'_> {
    let mut peeled = Peeled { bare: module, mark: Mark::Wrapper, layout: None, flat: false };
    while let Some((rest, (prefix, mark, layout))) =
        PREFIXES.iter().find_map(|row| Some((peeled.bare.strip_prefix(row.0)?, row)))
    {
        peeled.bare = rest;
        peeled.flat |= prefix.ends_with('_');
        if peeled.mark == Mark::Wrapper {
            peeled.mark = *mark; // the outermost one that tells: what holds T5 may be called `transformer`
        }
        if peeled.layout.is_none() && !layout.is_empty() {
            peeled.layout = Some(layout);
        }
    }
    peeled
}

/// The layout that the prefixes of a module's name indicate, if any.
pub(super) fn layout(module: &str) -> Option<&'static str> {
    peel(module).layout
}

/// Whether a module or tensor of this name belongs to a text encoder, even one that kiln does not know.
pub(super) fn is_of_text(name: &str) -> bool {
    let Peeled { bare, mark, .. } = peel(name);
    match mark {
        Mark::Text | Mark::SecondText => true,
        Mark::Denoiser => false,
        Mark::Wrapper => text::layer_named(bare).is_some(),
    }
}

/// The layers that the module of this name changes. Unknown names count as layers of the denoiser if they are dotted.
///
/// # Errors
/// The reason why it changes no layer that kiln knows.
pub(super) fn place(module: &str) -> Result<Place, &'static str> {
    let Peeled { bare, mark, flat, .. } = peel(module);
    let of = |part, layers| Place { part, layers, swapped: false, convolution: false };
    let is_text = matches!(mark, Mark::Text | Mark::SecondText);
    if mark != Mark::Denoiser
        && let Some((part, layer)) = text::layer_named(bare)
    {
        return match (part, mark) {
            (Part::TextEncoder, Mark::SecondText) => {
                Err("belongs to a second CLIP text encoder, as in Stable Diffusion XL")
            }
            _ => Ok(of(part, vec![layer])),
        };
    }
    if is_text {
        return Err("is not a linear layer of CLIP or T5 that kiln knows");
    }
    if let Some(original) = keys::original_named(bare) {
        return Ok(Place { swapped: original.swapped, ..of(Part::Denoiser, original.layers) });
    }
    if let Some(layers) = share(bare) {
        return Ok(of(Part::Denoiser, layers));
    }
    if let Some(layer) = unet::layer_named(bare) {
        return Ok(of(Part::Denoiser, vec![layer]));
    }
    if let Some(layer) = convolution::layer_named(bare) {
        return Ok(Place { convolution: true, ..of(Part::Denoiser, vec![layer]) });
    }
    let layer = keys::layer_named(bare);
    // Without dots, the name of an unknown layer cannot be recovered.
    if flat && keys::original_of(&layer).is_none() {
        return Err("is not a layer of FLUX or of Stable Diffusion's UNet that kiln knows");
    }
    Ok(of(Part::Denoiser, vec![layer]))
}

/// A part of a fused module of FLUX's original code: `….qkv.1` is its second layer (OneTrainer), and `….linear1.qkv` the first three
/// of a single block (XLabs).
fn share(module: &str) -> Option<Vec<String>> {
    let (fused, share) = module.rsplit_once(['.', '_'])?;
    let layers = keys::original_named(fused)?.layers;
    if layers.len() < 2 {
        return None;
    }
    match share {
        "qkv" => Some(layers[..3].to_vec()),
        number => Some(vec![layers.get(number.parse::<usize>().ok()?)?.clone()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(module: &str) -> (Part, Vec<String>) {
        let place = place(module).unwrap_or_else(|problem| panic!("{module} {problem}"));
        (place.part, place.layers)
    }

    #[test]
    fn prefixes_are_peeled_in_any_order_and_nesting() {
        let name = "transformer_blocks.3.attn.to_q";
        for prefix in [
            "",
            "transformer.",
            "diffusion_model.",
            "model.diffusion_model.",
            "base_model.model.",
            "base_model.model.transformer.",
            "transformer.base_model.model.",
            "base_model.model.base_model.model.",
            "model.",
            "transformer._orig_mod.",
            "_orig_mod.transformer.module.",
            "base_model.model.model.diffusion_model.",
        ] {
            assert_eq!(layer(&format!("{prefix}{name}")), (Part::Denoiser, vec![name.to_string()]), "{prefix}");
            let fused = layer(&format!("{prefix}double_blocks.3.img_attn.qkv"));
            assert_eq!((fused.1.len(), fused.1[0].as_str()), (3, name), "{prefix}");
            let unet = layer(&format!("{prefix}input_blocks.1.1.proj_in")).1;
            assert_eq!(unet, ["down_blocks.0.attentions.0.proj_in"], "{prefix}");
        }
        for prefix in ["lora_unet_", "lora_transformer_", "lycoris_", "transformer.lora_unet_"] {
            assert_eq!(layer(&format!("{prefix}{}", keys::flat(name))).1, [name], "{prefix}");
        }
    }

    #[test]
    fn shares_of_fused_modules_are_the_layers_that_they_are_made_of() {
        for (module, layers) in [
            ("transformer.double_blocks.7.img_attn.qkv.0", &["transformer_blocks.7.attn.to_q"][..]),
            ("transformer.double_blocks.7.txt_attn.qkv.2", &["transformer_blocks.7.attn.add_v_proj"]),
            ("lora_transformer_double_blocks_7_img_attn_qkv_1", &["transformer_blocks.7.attn.to_k"]),
            ("transformer.single_blocks.0.linear1.3", &["single_transformer_blocks.0.proj_mlp"]),
            (
                "single_blocks.1.linear1.qkv",
                &[
                    "single_transformer_blocks.1.attn.to_q",
                    "single_transformer_blocks.1.attn.to_k",
                    "single_transformer_blocks.1.attn.to_v",
                ],
            ),
            // Here the last number is part of the layer's own name.
            ("double_blocks.7.img_mlp.0", &["transformer_blocks.7.ff.net.0.proj"]),
        ] {
            assert_eq!(layer(module).1, layers, "{module}");
        }
    }

    #[test]
    fn text_encoders_are_told_by_their_layers_and_prefixes() {
        let clip = "encoder.layers.1.self_attn.q_proj".to_string();
        for prefix in ["text_encoder.text_model.", "clip_l.text_model.", "text_encoder.", "text_model."] {
            assert_eq!(layer(&format!("{prefix}{clip}")), (Part::TextEncoder, vec![clip.clone()]), "{prefix}");
        }
        for prefix in ["lora_te_text_model_", "lora_te1_text_model_"] {
            assert_eq!(layer(&format!("{prefix}{}", keys::flat(&clip))), (Part::TextEncoder, vec![clip.clone()]));
        }
        let t5 = "encoder.block.10.layer.0.SelfAttention.q".to_string();
        for module in [
            format!("text_encoder_2.{t5}"),
            format!("t5.{t5}"),
            format!("t5xxl.transformer.{t5}"),
            format!("lora_te3_{}", keys::flat(&t5)),
            format!("lora_te2_{}", keys::flat(&t5)),
        ] {
            assert_eq!(layer(&module), (Part::TextEncoder2, vec![t5.clone()]), "{module}");
        }
        assert!(place(&format!("lora_te2_text_model_{}", keys::flat(&clip))).unwrap_err().contains("XL"));
        assert!(place("lora_te_text_model_embeddings").is_err());
        let text = ["lora_te_text_model_embeddings", "lora_te2_text_model_anything", "text_encoder.text_model.x.bias"];
        assert!(text.iter().chain([&format!("text_model.{clip}").as_str()]).all(|name| is_of_text(name)));
        assert!(!["transformer.text_encoder.x", "lora_unet_mid_block", "proj_out"].iter().any(|name| is_of_text(name)));
    }
}
