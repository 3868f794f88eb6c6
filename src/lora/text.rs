//! The linear layers of text encoders in the spellings of adapter files: transformers' names, with or without underscores for the
//! dots.

use super::{Part, unet::spelled};

/// Layers in each block of CLIP; `#` stands for a number.
const CLIP: [&str; 6] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"];

/// Layers in each block of T5.
const T5: [&str; 7] = [
    "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.k",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.o",
    "layer.1.DenseReluDense.wi_0",
    "layer.1.DenseReluDense.wi_1",
    "layer.1.DenseReluDense.wo",
];

/// transformers' name, without CLIP's `text_model.`, of the layer called `module`, and its text encoder.
pub(super) fn layer_named(module: &str) -> Option<(Part, String)> {
    let clip = module.strip_prefix("text_model").and_then(|rest| rest.strip_prefix(['.', '_'])).unwrap_or(module);
    let find = |block: &str, layers: &[&str], module: &str| {
        layers.iter().find_map(|layer| spelled(&format!("{block}.{layer}"), module))
    };
    let of_clip = find("encoder.layers.#", &CLIP, clip).map(|layer| (Part::TextEncoder, layer));
    of_clip.or_else(|| find("encoder.block.#", &T5, module).map(|layer| (Part::TextEncoder2, layer)))
}
