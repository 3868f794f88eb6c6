//! How far preparation is.

/// A part of the preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Pictures are read and checked.
    Check,
    /// Prompts are encoded.
    Prompts,
    /// Pictures are encoded.
    Pictures,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Check => "checking images",
            Self::Prompts => "encoding prompts",
            Self::Pictures => "encoding images",
        })
    }
}

/// How far a phase is. Each phase starts with `done` 0 and, unless it fails, ends with `done` = `total`; a phase without work
/// is not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Pictures or prompts finished.
    pub done: usize,
    /// Pictures or prompts in all.
    pub total: usize,
}
