//! From text to token ids.

/// The token ids of one prompt, for each text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptIds {
    /// For CLIP: `[77]`.
    pub clip: Vec<i64>,
    /// For T5: `[L]`; empty where a model has none.
    pub t5: Vec<i64>,
}
