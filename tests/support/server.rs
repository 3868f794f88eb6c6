//! `kiln serve` as a user runs it, on a free port, in its own folder.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::program::command;

/// Longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A model of this repository.
pub fn model(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checkpoint = folder.join("checkpoints").join(name);
    let path = if checkpoint.exists() { checkpoint } else { folder.join("tests/fixtures").join(name) };
    format!("[[models]]\nname = \"{name}\"\npath = '{}'\n", path.display())
}

/// A running server, which is stopped when this is dropped.
pub struct Server {
    process: Child,
    /// Its address, such as `127.0.0.1:41234`.
    pub address: String,
    /// Its configuration, state, log and keys.
    pub folder: tempfile::TempDir,
    started: Instant,
    /// The time from its start until it printed its address.
    pub ready_after: Duration,
}

/// The response of a server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]))
    }
}

impl Server {
    /// Starts one with these tables; `more` are options of the command line.
    #[track_caller]
    pub fn start(tables: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("keys"), "ann ann-has-a-long-key\nbob bob-has-another-key\n").unwrap();
        Self::start_in(folder, tables, more)
    }

    /// The same in a folder that there is, with the jobs in it.
    #[track_caller]
    pub fn start_in(folder: tempfile::TempDir, tables: &str, more: &[&str]) -> Self {
        let config = folder.path().join("serve.toml");
        let text = format!("port = 0\nstate = '{}'\n{tables}", folder.path().join("state").display());
        // Keys of the top level come before tables, wherever a test writes them.
        let (mut top, mut rest) = (String::new(), String::new());
        let mut in_table = false;
        for line in text.lines() {
            in_table |= line.starts_with('[');
            let place = if in_table { &mut rest } else { &mut top };
            *place += line;
            *place += "\n";
        }
        std::fs::write(&config, top + &rest).unwrap();
        let mut arguments = vec!["-v", "serve", "--config", config.to_str().unwrap()];
        arguments.extend(more);
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let started = Instant::now();
        let mut process = command(&arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").map(String::from);
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        let address = address.unwrap_or_else(|| panic!("the server did not start: {line}{}", log()));
        Self { process, address, folder, started, ready_after: started.elapsed() }
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A request with these headers, as `Name: value` lines.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.send(method, path, headers, body);
        let mut bytes = Vec::new();
        // A server that refuses a long body closes before it has read all of it.
        _ = stream.read_to_end(&mut bytes);
        parsed(&bytes)
    }

    /// The same without waiting for the answer.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let host = if headers.iter().any(|header| header.to_lowercase().starts_with("host:")) {
            String::new()
        } else {
            format!("host: {}\r\n", self.address)
        };
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = format!("content-length: {}\r\n", body.len());
        let length = if method == "GET" { "" } else { &length };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}connection: close\r\n{headers}{length}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        _ = stream.write_all(body);
        stream
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &[])
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &["content-type: application/json"], body.to_string().as_bytes())
    }

    /// A form of these parts: name, name of the file if it is one, bytes.
    #[track_caller]
    pub fn form(&self, path: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Answer {
        let body = form(parts);
        self.ask("POST", path, &["content-type: multipart/form-data; boundary=border"], &body)
    }

    /// The name of a job that was accepted.
    #[track_caller]
    pub fn submit(&self, body: &Value) -> String {
        self.post("/kiln/v1/jobs", body).expect(202).json()["id"].as_str().unwrap().into()
    }

    /// A job once it has ended.
    #[track_caller]
    pub fn finished(&self, id: &str) -> Value {
        let path = format!("/kiln/v1/jobs/{id}");
        self.until(|| {
            let job = self.get(&path).expect(200).json();
            (!["queued", "running"].contains(&job["status"].as_str().unwrap())).then_some(job)
        })
    }

    /// Waits until `look` finds something, and returns it.
    #[track_caller]
    pub fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "it never comes; the log says: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends the process this signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that was not waited for, so its number is its own.
        unsafe { libc::kill(self.process.id() as i32, signal) };
    }

    /// Asks the server to stop; returns how it ended, how long that took, and its folder.
    pub fn stop(mut self) -> (ExitStatus, Duration, tempfile::TempDir) {
        let began = Instant::now();
        self.signal(libc::SIGTERM);
        let status = self.process.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        (status, began.elapsed(), folder)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let after = self.started.elapsed();
            _ = writeln!(std::io::stderr(), "the log of the server, {after:?} after its start:\n{log}");
        }
    }
}

/// A form with the boundary `border`.
pub fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\"\r\ncontent-type: image/png"));
        body.extend_from_slice(
            format!("--border\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--border--\r\n");
    body
}

/// An answer as it came, whole or in chunks; with status 0 where none came.
pub fn parsed(bytes: &[u8]) -> Answer {
    let split = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(split) = split else { return Answer { status: 0, headers: Vec::new(), body: bytes.to_vec() } };
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_string(), value.to_string()));
    let mut answer = Answer { status, headers: headers.collect(), body: bytes[split + 4..].to_vec() };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunked(&answer.body);
    }
    answer
}

/// The pieces of a body, as far as they came.
pub fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap_or("0"), 16).unwrap_or(0);
        let piece = rest.get(end + 2..end + 2 + size).unwrap_or_default();
        body.extend_from_slice(piece);
        if size == 0 || piece.len() < size {
            break;
        }
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}

/// Server-sent events: their numbers, names and data.
pub fn events(body: &[u8]) -> Vec<(u64, String, Value)> {
    let text = String::from_utf8_lossy(body);
    let blocks = text.split("\n\n").filter(|block| block.contains("data:"));
    let read = blocks.map(|block| {
        let field =
            |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
        let data = serde_json::from_str(field("data:")).unwrap_or(json!(null));
        (field("id:").parse().unwrap_or(0), field("event:").to_string(), data)
    });
    read.collect()
}
