//! Reads the `metrics.jsonl` of a run while another process writes it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A record, of any version of kiln: one line of the file.
pub type Line = Map<String, Value>;

/// The records from a position in the file on.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Curve {
    /// The records, in the order of the file.
    #[schema(value_type = Vec<Object>)]
    pub records: Vec<Line>,
    /// The position after them, to pass as `after` next time.
    pub next: String,
    /// Whether the records begin at the start of the file because the requested position no longer exists: a run that resumes
    /// removes the lines of steps that it repeats. Records read before must be discarded.
    pub restarted: bool,
    /// The number of complete lines among these that are not valid records.
    pub unreadable: usize,
}

impl Curve {
    /// Reads complete lines only; one that is still being written is left for the next time. A file that cannot be read counts as
    /// empty.
    pub fn read(path: &Path, after: Option<&str>) -> Self {
        let place = after.and_then(Place::parse);
        let found = place.and_then(|place| Some((place.clone(), place.rest(path)?)));
        let restarted = found.is_none();
        let (from, text) = found.unwrap_or_else(|| (Place::default(), read_from(path, 0).unwrap_or_default()));
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let (records, unreadable) = records(whole);
        Self { records, next: from.after(whole).to_string(), restarted, unreadable }
    }
}

/// A summary of a run's metrics, updated as the file grows.
#[derive(Debug, Default)]
pub struct RunMetrics {
    next: Option<String>,
    last: Option<Line>,
    step: u64,
    validation_losses: BTreeMap<u64, f64>,
    unreadable: usize,
}

impl RunMetrics {
    /// Reads what was written since the last time.
    pub fn update(&mut self, path: &Path) {
        let curve = Curve::read(path, self.next.as_deref());
        if curve.restarted {
            *self = Self::default();
        }
        for record in curve.records {
            let Some(step) = record.get("step").and_then(Value::as_u64) else { continue };
            self.step = self.step.max(step);
            match record.get("validation_loss").and_then(Value::as_f64) {
                Some(loss) => _ = self.validation_losses.insert(step, loss),
                None => self.last = Some(record),
            }
        }
        self.unreadable += curve.unreadable;
        self.next = Some(curve.next);
    }

    /// The last training record.
    pub fn last(&self) -> Option<&Line> {
        self.last.as_ref()
    }

    /// The last recorded step.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The held-out losses, by step.
    pub fn validation_losses(&self) -> &BTreeMap<u64, f64> {
        &self.validation_losses
    }

    /// The last held-out loss.
    pub fn validation_loss(&self) -> Option<f64> {
        self.validation_losses.last_key_value().map(|(_, loss)| *loss)
    }

    /// The number of lines that are not valid records.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }
}

/// A position after complete lines: the number of bytes before it, and a hash of the last of these lines, which shows whether the
/// file is still the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    bytes: u64,
    line_bytes: u64,
    hash: String,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let (bytes, line_bytes) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let place = Self { bytes, line_bytes, hash: parts.next()?.into() };
        (line_bytes <= bytes && bytes > 0).then_some(place)
    }

    /// The file's text after this position; `None` if it is no longer the same file.
    fn rest(&self, path: &Path) -> Option<String> {
        let text = read_from(path, self.bytes - self.line_bytes)?;
        let (line, rest) = text.split_at_checked(self.line_bytes.try_into().ok()?)?;
        (hash(line) == self.hash).then(|| rest.into())
    }

    /// The position after further complete lines.
    fn after(self, lines: &str) -> Self {
        match lines.split_inclusive('\n').next_back() {
            None => self,
            Some(last) => {
                Self { bytes: self.bytes + lines.len() as u64, line_bytes: last.len() as u64, hash: hash(last) }
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.bytes, self.line_bytes, self.hash)
    }
}

fn hash(line: &str) -> String {
    blake3::hash(line.as_bytes()).to_hex()[..16].into()
}

/// The file from a byte on; `None` if it cannot be read or is shorter. Text that is not UTF-8 is not a valid record either.
fn read_from(path: &Path, byte: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    if file.metadata().ok()?.len() < byte {
        return None;
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(byte)).ok()?;
    file.read_to_end(&mut bytes).ok()?;
    // The end may be in the middle of a character: that line is incomplete.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    bytes.truncate(whole);
    String::from_utf8(bytes).ok()
}

fn records(lines: &str) -> (Vec<Line>, usize) {
    let mut unreadable = 0;
    let record = |line: &str| match serde_json::from_str(line) {
        Ok(record) => Some(record),
        Err(_) => {
            unreadable += usize::from(!line.trim().is_empty());
            None
        }
    };
    let records = lines.lines().filter_map(record).collect();
    (records, unreadable)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(step: u64) -> String {
        format!("{{\"step\":{step},\"loss\":0.5,\"from\":\"elsewhere\"}}\n")
    }

    fn steps(curve: &Curve) -> Vec<u64> {
        curve.records.iter().map(|record| record["step"].as_u64().unwrap()).collect()
    }

    #[test]
    fn whole_lines_are_read_once_while_the_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(Curve::read(&path, None).records, Vec::<Line>::new());
        let mut file = File::create(&path).unwrap();
        file.write_all((line(1) + &line(2) + "{\"step\":3,\"lo").as_bytes()).unwrap();
        let first = Curve::read(&path, None);
        assert_eq!((steps(&first), first.restarted, first.unreadable), (vec![1, 2], true, 0));
        let nothing = Curve::read(&path, Some(&first.next));
        assert_eq!((steps(&nothing), nothing.restarted, &nothing.next), (vec![], false, &first.next));
        file.write_all(b"ss\":0.5}\nno record\n").unwrap();
        let second = Curve::read(&path, Some(&first.next));
        assert_eq!((steps(&second), second.restarted, second.unreadable), (vec![3], false, 1));
    }

    #[test]
    fn a_file_that_was_cut_or_replaced_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, line(1) + &line(2) + &line(3)).unwrap();
        let next = Curve::read(&path, None).next;
        // A run that resumed after step 1 and has since written as much as before.
        std::fs::write(&path, line(1) + &line(4) + &line(5) + &line(6)).unwrap();
        let curve = Curve::read(&path, Some(&next));
        assert_eq!((steps(&curve), curve.restarted), (vec![1, 4, 5, 6], true));
        std::fs::write(&path, line(1)).unwrap();
        assert_eq!(steps(&Curve::read(&path, Some(&curve.next))), [1]);
        for odd in ["", "x", "5", "5-9-x", "0-0-", "18446744073709551615-1-x", "3-2-é"] {
            assert!(Curve::read(&path, Some(odd)).restarted, "{odd}");
        }
    }

    #[test]
    fn what_metrics_come_to_follows_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = RunMetrics::default();
        std::fs::write(&path, line(10) + "{\"step\":10,\"validation_loss\":0.7}\n").unwrap();
        metrics.update(&path);
        assert_eq!((metrics.step(), metrics.validation_loss()), (10, Some(0.7)));
        std::fs::write(&path, line(5)).unwrap();
        metrics.update(&path);
        assert_eq!((metrics.step(), metrics.validation_loss()), (5, None));
        assert_eq!(metrics.last().unwrap()["from"], "elsewhere");
    }
}
