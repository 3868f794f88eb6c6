//! Compatibility of adapter files with other programs. The rules are observed behaviour of each program's loader on kiln's files, by
//! names and number of layers.

use std::fmt;

use serde::Serialize;

use super::{Denoiser, Format, Lora, keys};

/// A program that loads adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Program {
    /// Hugging Face's library.
    #[serde(rename = "diffusers")]
    Diffusers,
    /// ComfyUI.
    ComfyUi,
    /// Stable Diffusion WebUI Forge.
    Forge,
    /// kohya's sd-scripts.
    #[serde(rename = "kohya sd-scripts")]
    Kohya,
    /// InvokeAI.
    InvokeAi,
    /// stable-diffusion.cpp.
    #[serde(rename = "stable-diffusion.cpp")]
    SdCpp,
    /// ai-toolkit, for FLUX.
    #[serde(rename = "ai-toolkit")]
    AiToolkit,
}

use Program::*;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Diffusers => "diffusers",
            ComfyUi => "ComfyUI",
            Forge => "Forge",
            Kohya => "kohya sd-scripts",
            InvokeAi => "InvokeAI",
            SdCpp => "stable-diffusion.cpp",
            AiToolkit => "ai-toolkit",
        })
    }
}

/// A program and how much of a file it loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// The program.
    pub program: Program,
    /// The number of layers that it silently leaves out; all of them if it does not load the file.
    pub missed: usize,
}

/// Counts of an adapter's layers that programs treat differently.
#[derive(Clone, Copy, Debug)]
struct Layers {
    all: usize,
    /// FLUX: layers outside the two lists of blocks.
    outside: usize,
    /// FLUX: those of them in the last layer.
    last: usize,
}

/// The programs that load an adapter on `layers` (diffusers' names) of a `denoiser` in a file of this `format`, and how much of it.
pub fn readers<'a>(denoiser: Denoiser, layers: impl Iterator<Item = &'a str> + Clone, format: Format) -> Vec<Reader> {
    let originals: Vec<_> = layers.clone().filter_map(keys::original_of).collect();
    let count = |test: &dyn Fn(&str) -> bool| originals.iter().filter(|module| test(&module.name)).count();
    let found = Layers {
        all: layers.count(),
        outside: count(&|name| !name.contains("_blocks.")),
        last: count(&|name| name.starts_with("final_layer.")),
    };
    let rows: &[Program] = match (denoiser, format) {
        (Denoiser::Unet, Format::Diffusers) => &[Diffusers, ComfyUi, Forge], // of the others it is not known
        (Denoiser::Unet, _) => &[Diffusers, ComfyUi, Forge, Kohya, InvokeAi, SdCpp],
        (Denoiser::Transformer, _) => &[Diffusers, ComfyUi, Forge, Kohya, InvokeAi, SdCpp, AiToolkit],
    };
    let reader = |&program: &Program| {
        let missed = match denoiser {
            Denoiser::Unet => missed_of_unet(program, found, format),
            Denoiser::Transformer => missed_of_flux(program, found, format),
        };
        Reader { program, missed }
    };
    rows.iter().map(reader).collect()
}

/// User interfaces do not look for diffusers' names of a UNet's layers.
fn missed_of_unet(program: Program, Layers { all, .. }: Layers, format: Format) -> usize {
    match (format, program) {
        (Format::Diffusers, Diffusers) => 0,
        (Format::Diffusers, _) => all,
        (Format::Kohya | Format::ComfyUi, _) => 0,
    }
}

fn missed_of_flux(program: Program, Layers { all, outside, last }: Layers, format: Format) -> usize {
    match (program, format) {
        // It converts the names of other layouts, including those outside blocks, and then drops the latter.
        (Diffusers, Format::Kohya | Format::ComfyUi) => outside,
        (Diffusers, Format::Diffusers) => 0,
        (Kohya, _) => last,
        (SdCpp, _) => outside,
        // It refuses a file with unknown layers.
        (InvokeAi, _) if outside > 0 => all,
        (ComfyUi | Forge | AiToolkit | InvokeAi, _) => 0,
    }
}

impl Lora {
    /// The layout that most programs read: diffusers' for FLUX, kohya's for a UNet, which diffusers reads as well.
    pub fn usual_format(&self) -> Format {
        match self.denoiser {
            Denoiser::Unet => Format::Kohya,
            Denoiser::Transformer => Format::Diffusers,
        }
    }

    /// Lines about the programs that load a file of it in this `format`.
    pub fn compatibility(&self, format: Format) -> Vec<String> {
        let layers = self.layers.iter().map(|layer| layer.name.as_str());
        said(&readers(self.denoiser, layers, format), self.layers.len())
    }
}

/// The same in words, for `all` layers.
pub fn said(readers: &[Reader], all: usize) -> Vec<String> {
    let with = |test: &dyn Fn(usize) -> bool| {
        let names: Vec<_> = readers.iter().filter(|r| test(r.missed)).map(|r| r.program.to_string()).collect();
        names.join(", ")
    };
    let mut lines = Vec::new();
    let whole = with(&|missed| missed == 0);
    if !whole.is_empty() {
        lines.push(format!("loads in full in {whole}"));
    }
    let mut counts: Vec<usize> = readers.iter().map(|reader| reader.missed).filter(|&m| m > 0 && m < all).collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let programs = with(&|missed| missed == count);
        lines.push(format!("{programs} silently drops {count} of {all} layers, those outside the blocks"));
    }
    let none = with(&|missed| missed == all && all > 0);
    if !none.is_empty() {
        lines.push(format!("does not load in {none}"));
    }
    if readers.iter().any(|reader| reader.missed > 0) {
        lines.push(
            "with `lora.targets = \"blocks\"`, exported in kohya's format, all of these programs load every layer"
                .into(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(denoiser: Denoiser, layers: &[&str], format: Format) -> Vec<(Program, usize)> {
        assert_eq!(Denoiser::guess(layers.iter().copied()), denoiser);
        let readers = readers(denoiser, layers.iter().copied(), format).into_iter();
        readers.map(|r| (r.program, r.missed)).filter(|r| r.1 > 0).collect()
    }

    #[test]
    fn layers_outside_of_blocks_are_what_programs_leave_out() {
        let attention = ["attn.to_q", "attn.to_k", "attn.to_v"].map(|name| format!("transformer_blocks.0.{name}"));
        let attention: Vec<&str> = attention.iter().map(String::as_str).collect();
        for format in [Format::Diffusers, Format::Kohya, Format::ComfyUi] {
            assert_eq!(missed(Denoiser::Transformer, &attention, format), []);
        }
        let all = [&attention[..], &["x_embedder", "norm_out.linear", "proj_out"]].concat();
        assert_eq!(missed(Denoiser::Transformer, &all, Format::Diffusers), [(Kohya, 2), (InvokeAi, 6), (SdCpp, 3)]);
        assert_eq!(
            missed(Denoiser::Transformer, &all, Format::Kohya),
            [(Diffusers, 3), (Kohya, 2), (InvokeAi, 6), (SdCpp, 3)]
        );
    }

    #[test]
    fn a_unet_in_diffusers_names_is_for_diffusers_alone() {
        let layers = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"];
        assert_eq!(missed(Denoiser::Unet, &layers, Format::Kohya), []);
        assert_eq!(missed(Denoiser::Unet, &layers, Format::Diffusers), [(ComfyUi, 1), (Forge, 1)]);
        let lines = said(&readers(Denoiser::Unet, layers.into_iter(), Format::Diffusers), 1);
        assert!(lines[0].contains("in full in diffusers") && lines[1].contains("ComfyUI, Forge"), "{lines:?}");
    }
}
