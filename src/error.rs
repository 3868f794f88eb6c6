//! The error type: subject (a file, a tensor in it, a setting), problem and, where there is one, the next move as a hint.
//! [`cli`](crate::cli) prints them; a server sends them as JSON.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An actionable error.
///
/// Its text is `SUBJECT: PROBLEM`, with the next move as a last line `hint: …`. Settings have the names of their fields (`lora.rank`,
/// `width`), in backticks in a hint; the command line replaces them by its flags.
#[derive(Debug, Serialize)]
pub struct Error {
    /// The subject.
    pub subject: Subject,
    /// The problem.
    pub problem: Problem,
    /// The next move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip)]
    source: Option<io::Error>,
}

/// The subject of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A file or folder.
    Path(PathBuf),
    /// A tensor of a file.
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name there.
        name: String,
    },
    /// A key of a configuration (`lora.rank`) or a field of a request (`width`); after a blank, the value it was given.
    Setting(String),
    /// An optimizer step.
    Step(u64),
    /// The memory of the device.
    Memory,
    /// Work that was stopped on request, with everything done so far kept.
    Stopped {
        /// The results so far: the run folder, or the files written.
        done: Vec<PathBuf>,
    },
}

/// The most problems that are listed one by one.
const LISTED: usize = 20;

/// The first twenty of many lines, and the number of the others.
pub fn cut(lines: &[String]) -> Vec<String> {
    let more = lines.len().saturating_sub(LISTED);
    let more = (more > 0).then(|| format!("and {more} more"));
    lines.iter().take(LISTED).cloned().chain(more).collect()
}

/// One problem, or all problems of a subject, so that one run finds them all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Problem {
    /// A sentence that continues the subject.
    One(String),
    /// Problems of parts of the subject, one line each. Texts and JSON list the first twenty.
    Many(#[serde(serialize_with = "first")] Vec<String>),
}

fn first<S: Serializer>(problems: &[String], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    cut(problems).serialize(serializer)
}

impl Error {
    fn new(subject: Subject, problem: Problem) -> Self {
        Self { subject, problem, hint: None, source: None }
    }

    /// The operating system refused `path`: missing file, no permission, full disk.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        let error = Self::file(path, source.to_string());
        Self { source: Some(source), ..error }
    }

    /// `path` was read, but its content is not what it should be.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::new(Subject::Path(path.as_ref().into()), Problem::One(problem.into()))
    }

    /// The tensor `name` of the file `path` is not what it should be.
    pub fn tensor(path: impl AsRef<Path>, name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Subject::Tensor { path: path.as_ref().into(), name: name.into() }, Problem::One(problem.into()))
    }

    /// Several problems of `path`, one line each.
    pub fn many(path: impl AsRef<Path>, problems: Vec<String>) -> Self {
        Self::new(Subject::Path(path.as_ref().into()), Problem::Many(problems))
    }

    /// The setting `field` (a configuration key such as `lora.rank`, or a field of a request such as `width`) cannot be used.
    pub fn setting(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Subject::Setting(field.into()), Problem::One(problem.into()))
    }

    /// A value that must be finite was not at optimizer step `step`, so the run stopped before it could be saved.
    pub fn not_finite(step: u64, what: impl fmt::Display) -> Self {
        Self::new(Subject::Step(step), Problem::One(format!("not finite: {what}")))
    }

    /// The device is out of memory.
    pub fn memory(problem: impl Into<String>) -> Self {
        Self::new(Subject::Memory, Problem::One(problem.into()))
    }

    /// A stop on request. `what` says what became of the work, such as `: 3 images were written`, or is empty; `done` is the run folder, or
    /// the files written.
    pub fn stopped(what: impl Into<String>, done: Vec<PathBuf>) -> Self {
        Self::new(Subject::Stopped { done }, Problem::One(what.into()))
    }

    /// The same error about the file `path`, for callers that know the file. The subject stays if it is a setting.
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        if let Subject::Path(own) | Subject::Tensor { path: own, .. } = &mut self.subject {
            *own = path.as_ref().into();
        }
        self
    }

    /// The same error with a hint, after an existing one. Errors of the operating system stay as they are.
    pub fn hint(mut self, next_move: impl AsRef<str>) -> Self {
        if self.source.is_none() {
            self.hint = Some(match self.hint {
                Some(before) => format!("{before}; {}", next_move.as_ref()),
                None => next_move.as_ref().into(),
            });
        }
        self
    }

    /// Whether it is an error of the operating system, so that the content of the file is unknown.
    pub fn is_io(&self) -> bool {
        self.source.is_some()
    }

    /// Whether the device is out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.subject == Subject::Memory
    }

    /// Whether it is a stop on request.
    pub fn is_stop(&self) -> bool {
        matches!(self.subject, Subject::Stopped { .. })
    }

    /// The problems, one or many.
    pub fn problems(&self) -> &[String] {
        match &self.problem {
            Problem::One(problem) => std::slice::from_ref(problem),
            Problem::Many(problems) => problems,
        }
    }

    /// Subject and problem, without the hint.
    pub fn message(&self) -> String {
        match self.subject {
            Subject::Tensor { .. } => format!("{} {}", self.subject, self.problem),
            Subject::Stopped { .. } => format!("{}{}", self.subject, self.problem),
            _ => format!("{}: {}", self.subject, self.problem),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Tensor { path, name } => write!(f, "{}: tensor `{name}`", path.display()),
            Self::Setting(field) => write!(f, "`{field}`"),
            Self::Step(step) => write!(f, "step {step}"),
            Self::Memory => f.write_str("device memory"),
            Self::Stopped { .. } => f.write_str("stopped on request"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(problem) => f.write_str(problem),
            Self::Many(problems) => {
                let plural = if problems.len() == 1 { "" } else { "s" };
                write!(f, "{} problem{plural}\n  {}", problems.len(), cut(problems).join("\n  "))
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hint_is_a_field_and_the_last_line_of_the_text() {
        let error = Error::setting("lora.rank", "is 0").hint("use 16").hint("or leave it out");
        assert_eq!(error.message(), "`lora.rank`: is 0");
        assert_eq!(error.to_string(), "`lora.rank`: is 0\nhint: use 16; or leave it out");
        assert!(Error::io("a", io::Error::other("gone")).hint("look").hint.is_none());
    }

    #[test]
    fn a_path_that_only_the_caller_knows_is_put_in_its_place() {
        assert_eq!(Error::file("LoRA", "is empty").at("a.safetensors").message(), "a.safetensors: is empty");
        assert_eq!(Error::tensor("LoRA", "w", "is missing").at("a").message(), "a: tensor `w` is missing");
        assert_eq!(Error::setting("width", "is 0").at("a").message(), "`width`: is 0");
    }

    #[test]
    fn a_long_list_is_cut_and_keeps_its_hint() {
        let many = |count: usize| {
            let problems = (0..count).map(|i| format!("problem {i}")).collect();
            Error::many("a", problems).hint("do this").to_string()
        };
        assert!(many(20).contains("\n  problem 19\nhint: do this"));
        let said = many(1_000_000);
        assert!(said.starts_with("a: 1000000 problems\n  problem 0\n"), "{said}");
        assert!(said.ends_with("\n  problem 19\n  and 999980 more\nhint: do this"), "{said}");
        let many = Error::many("a", (0..100).map(|i| format!("problem {i}")).collect());
        let listed = serde_json::to_value(many).unwrap()["problem"].as_array().unwrap().clone();
        assert!(listed.len() == 21 && listed[20] == "and 80 more", "{listed:?}");
    }

    #[test]
    fn as_json_an_error_keeps_its_parts_apart() {
        let json = |error: Error| serde_json::to_value(error).unwrap();
        let expected = json!({"subject": {"setting": "width"}, "problem": "is 0", "hint": "use 512"});
        assert_eq!(json(Error::setting("width", "is 0").hint("use 512")), expected);
        let expected = json!({"subject": {"path": "folder"}, "problem": ["a: is empty", "b: is empty"]});
        assert_eq!(json(Error::many("folder", vec!["a: is empty".into(), "b: is empty".into()])), expected);
        let expected = json!({"subject": {"tensor": {"path": "m", "name": "w"}}, "problem": "is missing"});
        assert_eq!(json(Error::tensor("m", "w", "is missing")), expected);
    }
}
