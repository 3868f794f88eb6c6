//! What can go wrong, said once: each error names the file, tensor or setting it is about and, where there is one, the
//! next move.

use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error a person can act on. The text of every variant starts with what it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: missing file, no permission, full disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was opened, read or written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, but its content is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting of a configuration file or of the command line has an impossible value.
    #[error("`{field}`: {problem}")]
    Setting {
        /// The key or option.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// Several things of one kind are wrong with one source: all of them, so that one run finds them all.
    #[error("{}: {} problem{}\n  {}", path.display(), problems.len(), if problems.len() == 1 { "" } else { "s" }, listed(problems))]
    Many {
        /// The source.
        path: PathBuf,
        /// One line each.
        problems: Vec<String>,
    },
    /// A number that must be finite was not, so the run stopped before it could be saved.
    #[error("step {step}: not finite: {what}")]
    NotFinite {
        /// The optimizer step.
        step: u64,
        /// The number, and where it came from.
        what: String,
    },
    /// Somebody asked to stop: nothing went wrong, and what was done so far is kept.
    #[error("stopped on request{what}")]
    Stopped {
        /// What became of the work, such as `: 3 images were written`; empty if there is nothing to say.
        what: String,
        /// What is there nevertheless: the run folder, or the files written.
        done: Vec<PathBuf>,
    },
}

/// The most problems that are listed one by one.
const LISTED: usize = 20;

/// The problems in lines of their own, the first of them if there are many, and the hint that the last may end with.
fn listed(problems: &[String]) -> String {
    let Some(left) = problems.len().checked_sub(LISTED + 1) else { return problems.join("\n  ") };
    let hint = problems.last().and_then(|last| last.split_once("\nhint: ")).map(|(_, hint)| format!("\nhint: {hint}"));
    format!("{}\n  and {} more{}", problems[..LISTED].join("\n  "), left + 1, hint.unwrap_or_default())
}

impl Error {
    /// An operating-system error about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }

    /// `path` holds something else than expected.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().into(), problem: problem.into() }
    }

    /// The setting `field` (a configuration key such as `lora.rank`, or an option such as `--device`) cannot be used.
    pub fn setting(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { field: field.into(), problem: problem.into() }
    }

    /// The same, about `path`: for what only a caller knows the file of.
    pub fn at(mut self, file: impl AsRef<Path>) -> Self {
        if let Self::Io { path, .. } | Self::File { path, .. } | Self::Many { path, .. } = &mut self {
            *path = file.as_ref().into();
        }
        self
    }

    /// Appends the next move, on a line of its own. Errors of the operating system stay as they are.
    pub fn hint(mut self, next_move: impl AsRef<str>) -> Self {
        let line = format!("\nhint: {}", next_move.as_ref());
        match &mut self {
            Self::File { problem, .. } | Self::Setting { problem, .. } => problem.push_str(&line),
            Self::Many { problems, .. } => {
                if let Some(last) = problems.last_mut() {
                    last.push_str(&line);
                }
            }
            Self::NotFinite { what, .. } | Self::Stopped { what, .. } => what.push_str(&line),
            Self::Io { .. } => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_keeps_its_hint() {
        let many = |count: usize| {
            let problems = (0..count).map(|i| format!("problem {i}")).collect();
            Error::Many { path: "a".into(), problems }.hint("do this").to_string()
        };
        assert!(many(20).contains("\n  problem 19\nhint: do this"));
        let said = many(1_000_000);
        assert!(said.starts_with("a: 1000000 problems\n  problem 0\n"), "{said}");
        assert!(said.ends_with("\n  problem 19\n  and 999980 more\nhint: do this"), "{said}");
    }
}
