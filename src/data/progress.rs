//! Progress of preparation.

/// A phase of the preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Images are read and checked.
    Check,
    /// Prompts are encoded.
    Prompts,
    /// Images are encoded.
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

/// Progress of a phase. Each phase starts with `done` = 0 and, unless it fails, ends with `done` = `total`; a phase without work is
/// not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Images or prompts finished.
    pub done: usize,
    /// Images or prompts in all.
    pub total: usize,
}
