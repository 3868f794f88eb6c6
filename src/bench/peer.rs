//! Another program that measures the same cases, such as `benches/peer.py`.
//!
//! It is started once. For each case it gets one line of JSON, a [`Case`], and answers with one line, an [`Answer`]; its standard error
//! is passed through. It exits at the end of its input.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{Case, Variant};
use crate::error::{Error, Result};

/// The peer's answer for a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// The measured variants.
    pub variants: Vec<Variant>,
    /// The versions of its libraries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// The error, if nothing could be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The running peer.
#[derive(Debug)]
pub struct Peer {
    command: String,
    child: Child,
    /// `None` after it has exited.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `command` in a shell.
    ///
    /// # Errors
    /// There is no shell.
    pub fn start(command: &str) -> Result<Self> {
        let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut child = Command::new(shell)
            .args([option, command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(shell, e))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output was asked for"));
        Ok(Self { command: command.into(), child, requests, answers })
    }

    /// Has a case measured. A peer that exited, or gave an invalid answer, is not used again.
    pub fn measure(&mut self, case: &Case) -> Answer {
        self.ask(case).unwrap_or_else(|problem| {
            if self.requests.take().is_some() {
                tracing::warn!("the peer `{}` {problem}; continuing without it", self.command);
            }
            Answer { error: Some(problem), ..Answer::default() }
        })
    }

    fn ask(&mut self, case: &Case) -> std::result::Result<Answer, String> {
        let requests = self.requests.as_mut().ok_or("ended before")?;
        let line = serde_json::to_string(case).expect("a case is JSON") + "\n";
        let ended = |e: std::io::Error| format!("ended ({e})");
        requests.write_all(line.as_bytes()).and_then(|()| requests.flush()).map_err(ended)?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer).map_err(ended)? {
            0 => Err("ended without an answer".into()),
            _ => serde_json::from_str(&answer).map_err(|e| format!("gave no answer but `{}` ({e})", answer.trim())),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.requests.take()); // which ends it
        _ = self.child.wait();
    }
}
