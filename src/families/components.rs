//! The folders of a model, and the files of each.

/// A part of a model in a folder of its own.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// The name of the folder.
    pub folder: &'static str,
    /// Sets of files, at least one of which it has.
    pub files: &'static [&'static [&'static str]],
    /// Whether it also has weights.
    pub has_weights: bool,
}

impl Component {
    const fn network(folder: &'static str) -> Self {
        Self { folder, files: &[&["config.json"]], has_weights: true }
    }

    const fn files(folder: &'static str, files: &'static [&'static [&'static str]]) -> Self {
        Self { folder, files, has_weights: false }
    }
}

pub(super) const SCHEDULER: Component = Component::files("scheduler", &[&["scheduler_config.json"]]);
pub(super) const TEXT_ENCODER: Component = Component::network("text_encoder");
pub(super) const TEXT_ENCODER_2: Component = Component::network("text_encoder_2");
/// Files of CLIP's tokenizer.
pub(super) const TOKENIZER: Component = Component::files(
    "tokenizer",
    &[&["tokenizer_config.json", "tokenizer.json"], &["tokenizer_config.json", "vocab.json", "merges.txt"]],
);
/// Files of T5's tokenizer.
pub(super) const TOKENIZER_2: Component = Component::files(
    "tokenizer_2",
    &[&["tokenizer_config.json", "tokenizer.json"], &["tokenizer_config.json", "spiece.model"]],
);
pub(super) const TRANSFORMER: Component = Component::network("transformer");
pub(super) const UNET: Component = Component::network("unet");
pub(super) const VAE: Component = Component::network("vae");
