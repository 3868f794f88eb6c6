//! The convolutions of Stable Diffusion's UNet in the spellings of adapter files (LoCon): diffusers' names, with or without
//! underscores for the dots, and those of the original code.

use super::unet::{original, spelled};

/// diffusers' names; `#` stands for a number.
const LAYERS: [&str; 13] = [
    "down_blocks.#.resnets.#.conv1",
    "down_blocks.#.resnets.#.conv2",
    "down_blocks.#.resnets.#.conv_shortcut",
    "down_blocks.#.downsamplers.#.conv",
    "mid_block.resnets.#.conv1",
    "mid_block.resnets.#.conv2",
    "mid_block.resnets.#.conv_shortcut",
    "up_blocks.#.resnets.#.conv1",
    "up_blocks.#.resnets.#.conv2",
    "up_blocks.#.resnets.#.conv_shortcut",
    "up_blocks.#.upsamplers.#.conv",
    "conv_in",
    "conv_out",
];

/// Last parts of names in the original code, each with diffusers' name.
const RENAMED: [(&str, &str); 3] =
    [("in_layers.2", "conv1"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")];

/// The two convolutions outside the blocks.
const OUTSIDE: [(&str, &str); 2] = [("input_blocks.0.0", "conv_in"), ("out.2", "conv_out")];

/// diffusers' name of the convolution called `module`, if a UNet has it.
pub(super) fn layer_named(module: &str) -> Option<String> {
    if let Some((_, layer)) = OUTSIDE.iter().find(|(name, _)| spelled(name, module).is_some()) {
        return Some(layer.to_string());
    }
    let name = original(module).map_or_else(|| module.to_string(), |name| renamed(&name));
    LAYERS.iter().find_map(|layer| spelled(layer, &name))
}

/// diffusers' name for a name of the original code whose block is already renamed.
fn renamed(name: &str) -> String {
    let level = |name: &str| name.split('.').nth(1).map(str::to_string);
    // A down- or upsampler comes after the blocks of its level, as if it were one more block.
    match (name.strip_suffix(".op"), name.strip_suffix(".conv")) {
        (Some(block), _) if block.starts_with("down_blocks.") => {
            level(block).map_or_else(|| name.into(), |level| format!("down_blocks.{level}.downsamplers.0.conv"))
        }
        (_, Some(block)) if block.starts_with("up_blocks.") => {
            level(block).map_or_else(|| name.into(), |level| format!("up_blocks.{level}.upsamplers.0.conv"))
        }
        _ => {
            let flat = name.replace('_', ".");
            let found = RENAMED.iter().find(|(last, _)| flat.ends_with(&format!(".{}", last.replace('_', "."))));
            found.map_or_else(|| name.into(), |(last, layer)| format!("{}{layer}", &name[..name.len() - last.len()]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_codes_convolutions_are_those_of_the_published_conversion() {
        for (original, layer) in [
            ("input_blocks.0.0", "conv_in"),
            ("out.2", "conv_out"),
            ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks.5.0.out_layers.3", "down_blocks.1.resnets.1.conv2"),
            ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
            ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks.9.0.op", "down_blocks.2.downsamplers.0.conv"),
            ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
            ("middle_block.2.out_layers.3", "mid_block.resnets.1.conv2"),
            ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
            ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
            ("output_blocks.11.0.skip_connection", "up_blocks.3.resnets.2.conv_shortcut"),
            ("down_blocks.0.resnets.1.conv1", "down_blocks.0.resnets.1.conv1"),
            ("up_blocks.1.upsamplers.0.conv", "up_blocks.1.upsamplers.0.conv"),
        ] {
            assert_eq!(layer_named(original).as_deref(), Some(layer));
            assert_eq!(layer_named(&original.replace('.', "_")).as_deref(), Some(layer), "{original} flat");
        }
    }

    #[test]
    fn other_names_are_no_convolutions() {
        for name in ["", "down_blocks.0.resnets.0.norm1", "input_blocks.1.1.proj_in", "conv_inn", "out.0"] {
            assert_eq!(layer_named(name), None, "{name}");
        }
    }
}
