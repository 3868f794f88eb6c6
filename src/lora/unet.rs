//! The layers of Stable Diffusion's UNet in the spellings of adapter files: diffusers' own names, those with underscores for
//! the dots, those of its former attention processors, and those of the original code.
//!
//! The names of the original code are those of the UNet of Stable Diffusion 1 and 2, with two residual blocks on each level.

/// Patterns of names, starting with the block; `#` stands for a number.
const LAYERS: [(&[&str], &[&str]); 3] = [
    (
        &["down_blocks.#.attentions.#", "mid_block.attentions.#", "up_blocks.#.attentions.#"],
        &[
            "proj_in",
            "proj_out",
            "transformer_blocks.#.attn1.to_q",
            "transformer_blocks.#.attn1.to_k",
            "transformer_blocks.#.attn1.to_v",
            "transformer_blocks.#.attn1.to_out.0",
            "transformer_blocks.#.attn2.to_q",
            "transformer_blocks.#.attn2.to_k",
            "transformer_blocks.#.attn2.to_v",
            "transformer_blocks.#.attn2.to_out.0",
            "transformer_blocks.#.ff.net.0.proj",
            "transformer_blocks.#.ff.net.2",
        ],
    ),
    (&["down_blocks.#.resnets.#", "mid_block.resnets.#", "up_blocks.#.resnets.#"], &["time_emb_proj"]),
    (&["time_embedding"], &["linear_1", "linear_2"]),
];

/// Names inside the blocks of the original code, each with diffusers' name.
const RENAMED: [(&str, &str); 3] = [
    ("emb_layers.1", "time_emb_proj"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
];

/// The residual blocks of a level and its down- or upsampler: the original code numbers all of them.
const LEVEL: usize = 3;

/// diffusers' name of the layer called `module`, if a UNet has it.
pub(super) fn layer_named(module: &str) -> Option<String> {
    let module = module.replace(".processor.", ".");
    let module = if module.ends_with(".to_out") { module + ".0" } else { module };
    let module = original(&module).unwrap_or(module);
    LAYERS.iter().find_map(|(blocks, layers)| {
        blocks.iter().find_map(|block| layers.iter().find_map(|layer| spelled(&format!("{block}.{layer}"), &module)))
    })
}

/// `name` with the dots of `pattern`, if it matches that pattern, with numbers for `#` and possibly underscores for dots.
pub(super) fn spelled(pattern: &str, name: &str) -> Option<String> {
    let (mut spelled, mut rest) = (String::new(), name);
    for expected in pattern.chars() {
        let length = match expected {
            '#' => rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()),
            '.' => usize::from(rest.starts_with(['.', '_'])),
            other => usize::from(rest.starts_with(other)),
        };
        if length == 0 {
            return None;
        }
        spelled.push_str(if expected == '.' { "." } else { &rest[..length] });
        rest = &rest[length..];
    }
    rest.is_empty().then_some(spelled)
}

/// diffusers' name of a module of the original code.
pub(super) fn original(module: &str) -> Option<String> {
    let part = |number| if number == 1 { "attentions" } else { "resnets" };
    let (stem, rest) = if let Some((number, rest)) = numbered(module, "middle_block") {
        (format!("mid_block.{}.{}", part(number), number / 2), rest)
    } else if let Some((number, rest)) = numbered(module, "input_blocks") {
        let (inner, rest) = numbered(rest, "")?;
        let number = number.checked_sub(1)?; // the first is `conv_in`
        (format!("down_blocks.{}.{}.{}", number / LEVEL, part(inner), number % LEVEL), rest)
    } else if let Some((number, rest)) = numbered(module, "output_blocks") {
        let (inner, rest) = numbered(rest, "")?;
        (format!("up_blocks.{}.{}.{}", number / LEVEL, part(inner), number % LEVEL), rest)
    } else {
        let (_, layer) = RENAMED.iter().find(|(name, _)| spelled(name, module).is_some())?;
        return Some(layer.to_string());
    };
    let renamed = RENAMED.iter().find(|(name, _)| spelled(name, rest).is_some());
    Some(format!("{stem}.{}", renamed.map_or(rest, |(_, layer)| layer)))
}

/// Splits off `stem` and a number from the front of `name`, with the separator between them.
fn numbered<'a>(name: &'a str, stem: &str) -> Option<(usize, &'a str)> {
    let rest = name.strip_prefix(stem)?;
    let rest = if stem.is_empty() { rest } else { rest.strip_prefix(['.', '_'])? };
    let (number, rest) = rest.split_once(['.', '_'])?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_found_in_every_spelling() {
        let mut count = 0;
        for (blocks, layers) in LAYERS {
            for (block, layer) in blocks.iter().flat_map(|block| layers.iter().map(move |layer| (block, layer))) {
                let name = format!("{block}.{layer}").replace('#', "12");
                let processor = name.replace(".to_", ".processor.to_").replace("to_out.0", "to_out");
                for spelling in [name.clone(), name.replace('.', "_"), processor] {
                    assert_eq!(layer_named(&spelling).as_ref(), Some(&name), "{spelling}");
                }
                count += 1;
            }
        }
        assert_eq!(count, 3 * 12 + 3 + 2);
    }

    #[test]
    fn the_original_codes_names_are_those_of_the_published_conversion() {
        for (original, layer) in [
            ("input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
            (
                "input_blocks.2.1.transformer_blocks.0.attn1.to_q",
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            ),
            ("input_blocks.4.0.emb_layers.1", "down_blocks.1.resnets.0.time_emb_proj"),
            ("input_blocks.11.0.emb_layers.1", "down_blocks.3.resnets.1.time_emb_proj"),
            ("middle_block.0.emb_layers.1", "mid_block.resnets.0.time_emb_proj"),
            (
                "middle_block.1.transformer_blocks.0.ff.net.0.proj",
                "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            ),
            ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
            ("output_blocks.0.0.emb_layers.1", "up_blocks.0.resnets.0.time_emb_proj"),
            (
                "output_blocks.5.1.transformer_blocks.0.attn2.to_out.0",
                "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0",
            ),
            ("output_blocks.11.1.proj_out", "up_blocks.3.attentions.2.proj_out"),
            ("time_embed.2", "time_embedding.linear_2"),
        ] {
            assert_eq!(layer_named(original).as_deref(), Some(layer));
            assert_eq!(layer_named(&original.replace('.', "_")).as_deref(), Some(layer));
        }
    }

    #[test]
    fn other_names_are_no_layers_of_a_unet() {
        for name in [
            "",
            "transformer_blocks.0.attn.to_q",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn3.to_q",
            "down_blocks.x.attentions.0.proj_in",
            "down_blocks.0.attentions.0.proj_inn",
            "input_blocks.0.0.emb_layers.1",
            "input_blocks.1",
            "middle_block",
            "down_blocks.1.resnets.0.conv_shortcut",
            "input_blocks.7.0.skip_connection",
            "single_transformer_blocks_0_linear1",
        ] {
            assert_eq!(layer_named(name), None, "{name}");
        }
    }
}
