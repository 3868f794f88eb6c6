//! The names of tensors in single files, with those of diffusers and transformers. The linear layers of FLUX have the key table of
//! adapter files.

/// Tensors in each residual block of the UNet.
const UNET_RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// Tensors of the UNet outside its blocks.
const UNET_TOP: [(&str, &str); 5] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// Tensors in each attention block of the VAE.
const VAE_ATTENTION: [(&str, &str); 5] =
    [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

/// Tensors in each block of OpenCLIP.
const OPEN_CLIP: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];

/// Norms of queries and keys in FLUX, which are not linear layers.
const FLUX_NORMS: [(&str, &str, &str, &str); 6] = [
    ("double_blocks", "img_attn.norm.query_norm.scale", "transformer_blocks", "attn.norm_q.weight"),
    ("double_blocks", "img_attn.norm.key_norm.scale", "transformer_blocks", "attn.norm_k.weight"),
    ("double_blocks", "txt_attn.norm.query_norm.scale", "transformer_blocks", "attn.norm_added_q.weight"),
    ("double_blocks", "txt_attn.norm.key_norm.scale", "transformer_blocks", "attn.norm_added_k.weight"),
    ("single_blocks", "norm.query_norm.scale", "single_transformer_blocks", "attn.norm_q.weight"),
    ("single_blocks", "norm.key_norm.scale", "single_transformer_blocks", "attn.norm_k.weight"),
];

/// Splits off `weight` or `bias` at the end.
pub(super) fn kind(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))
}

/// Splits off a number and a dot at the front.
fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// diffusers' name of the norm of FLUX called `name`.
pub(super) fn flux_norm(name: &str) -> Option<String> {
    FLUX_NORMS.iter().find_map(|(list, norm, blocks, own)| {
        let (number, rest) = numbered(name.strip_prefix(list)?.strip_prefix('.')?)?;
        (rest == *norm).then(|| format!("{blocks}.{number}.{own}"))
    })
}

/// diffusers' name of the UNet's tensor `name`, with so many residual blocks per down level.
pub(super) fn unet(name: &str, layers_per_block: usize) -> Option<String> {
    let (module, kind) = kind(name)?;
    if let Some((_, own)) = UNET_TOP.iter().find(|(original, _)| *original == module) {
        return Some(format!("{own}.{kind}"));
    }
    let resnet = |rest: &str| UNET_RESNET.iter().find(|(original, _)| *original == rest).map(|(_, own)| *own);
    let own = if let Some(rest) = module.strip_prefix("middle_block.") {
        let (number, rest) = numbered(rest)?;
        match number {
            1 => format!("mid_block.attentions.0.{rest}"),
            number => format!("mid_block.resnets.{}.{}", number / 2, resnet(rest)?),
        }
    } else {
        let (way, size, changed, rest) = match module.strip_prefix("input_blocks.") {
            Some(rest) => ("down_blocks", "op", "downsamplers", rest),
            None => ("up_blocks", "conv", "upsamplers", module.strip_prefix("output_blocks.")?),
        };
        let (number, rest) = numbered(rest)?;
        let (inner, rest) = numbered(rest)?;
        let number = if way == "down_blocks" { number.checked_sub(1)? } else { number };
        // On the way down, the downsampler counts as one more block; on the way up there is one more residual block.
        let (level, number) = (number / (layers_per_block + 1), number % (layers_per_block + 1));
        match (inner, resnet(rest)) {
            _ if rest == size => format!("{way}.{level}.{changed}.0.conv"),
            (0, Some(own)) => format!("{way}.{level}.resnets.{number}.{own}"),
            (0, None) => return None,
            (_, _) => format!("{way}.{level}.attentions.{number}.{rest}"),
        }
    };
    Some(format!("{own}.{kind}"))
}

/// diffusers' name of the VAE's tensor `name`, with so many levels in its decoder.
pub(super) fn vae(name: &str, levels: usize) -> Option<String> {
    let (module, kind) = kind(name)?;
    if ["quant_conv", "post_quant_conv"].contains(&module) {
        return Some(name.into());
    }
    let (side, rest) = module.split_once('.')?;
    if !["encoder", "decoder"].contains(&side) {
        return None;
    }
    let resnet = |rest: &str| rest.replace("nin_shortcut", "conv_shortcut");
    let own = if ["conv_in", "conv_out"].contains(&rest) {
        rest.to_string()
    } else if rest == "norm_out" {
        "conv_norm_out".into()
    } else if let Some(rest) = rest.strip_prefix("mid.attn_1.") {
        let (_, own) = VAE_ATTENTION.iter().find(|(original, _)| *original == rest)?;
        format!("mid_block.attentions.0.{own}")
    } else if let Some((number, rest)) = rest.strip_prefix("mid.block_").and_then(numbered) {
        format!("mid_block.resnets.{}.{}", number.checked_sub(1)?, resnet(rest))
    } else if let Some((level, rest)) = rest.strip_prefix("down.").and_then(numbered) {
        match rest.strip_prefix("block.") {
            Some(rest) => format!("down_blocks.{level}.resnets.{}", resnet(rest)),
            None => format!("down_blocks.{level}.{}", rest.replace("downsample.conv", "downsamplers.0.conv")),
        }
    } else {
        // The levels of the decoder are numbered in reverse.
        let (level, rest) = rest.strip_prefix("up.").and_then(numbered)?;
        let level = levels.checked_sub(level + 1)?;
        match rest.strip_prefix("block.") {
            Some(rest) => format!("up_blocks.{level}.resnets.{}", resnet(rest)),
            None => format!("up_blocks.{level}.{}", rest.replace("upsample.conv", "upsamplers.0.conv")),
        }
    };
    Some(format!("{side}.{own}.{kind}"))
}

/// transformers' names of the parts of OpenCLIP's tensor `name`, in the order of its rows: queries, keys and values are fused.
pub(super) fn open_clip(name: &str) -> Option<Vec<String>> {
    let top = match name {
        "token_embedding.weight" => Some("embeddings.token_embedding.weight"),
        "positional_embedding" => Some("embeddings.position_embedding.weight"),
        "ln_final.weight" => Some("final_layer_norm.weight"),
        "ln_final.bias" => Some("final_layer_norm.bias"),
        _ => None,
    };
    if let Some(own) = top {
        return Some(vec![format!("text_model.{own}")]);
    }
    let (number, rest) = numbered(name.strip_prefix("transformer.resblocks.")?)?;
    let layer = format!("text_model.encoder.layers.{number}");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        return Some(["q", "k", "v"].map(|which| format!("{layer}.self_attn.{which}_proj.{kind}")).into());
    }
    let (module, kind) = kind(rest)?;
    let (_, own) = OPEN_CLIP.iter().find(|(original, _)| *original == module)?;
    Some(vec![format!("{layer}.{own}.{kind}")])
}
