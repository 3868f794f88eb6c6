//! A NATS server, a server of kiln and workers, each a process of its own.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use image::{Rgb, RgbImage};

use crate::support::{
    program::command,
    server::{PATIENCE, Server, model},
    serving::adapters,
};

/// Where a NATS server is, if there is one.
fn nats() -> Option<PathBuf> {
    let named = std::env::var_os("KILN_TEST_NATS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    named.or_else(|| found.find(|file| file.is_file()))
}

/// Says what was measured, or skipped.
pub fn say(text: impl std::fmt::Display) {
    _ = writeln!(std::io::stderr(), "{text}");
}

/// A small image in base64.
pub fn picture(number: u8) -> String {
    use base64::Engine;
    let image = RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8 * 7, y as u8 * 5, number.wrapping_mul(40)]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    base64::prelude::BASE64_STANDARD.encode(bytes.into_inner())
}

/// The queue, the store, and what all machines are told.
pub struct Machines {
    queue: Child,
    port: u16,
    pub folder: tempfile::TempDir,
}

impl Machines {
    /// Starts a queue; none where there is no program for it.
    pub fn start(test: &str) -> Option<Self> {
        let Some(program) = nats() else {
            say(format!("skipped: {test}: there is no nats-server in PATH or KILN_TEST_NATS"));
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        adapters(&folder.path().join("loras"), &[4, 8]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let queue = Self::queue(&program, port, &folder);
        Some(Self { queue, port, folder })
    }

    fn queue(program: &PathBuf, port: u16, folder: &tempfile::TempDir) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join("nats.log")).unwrap();
        // Messages of more bytes are refused.
        let config = folder.path().join("nats.conf");
        std::fs::write(&config, "max_payload: 8192\n").unwrap();
        let mut nats = Command::new(program);
        nats.arg("-c")
            .arg(config)
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(folder.path().join("nats"));
        let child = nats.stdout(Stdio::null()).stderr(log).process_group(0).spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "the queue does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    /// Kills the queue.
    pub fn stop_queue(&mut self) {
        self.queue.kill().unwrap();
        self.queue.wait().unwrap();
    }

    /// Kills the queue and starts it again, with what it had on disk or without.
    pub fn restart_queue(&mut self, keeps: bool) {
        self.stop_queue();
        if !keeps {
            std::fs::remove_dir_all(self.folder.path().join("nats")).unwrap();
        }
        self.queue = Self::queue(&nats().unwrap(), self.port, &self.folder);
    }

    /// The table that says where the machines meet.
    pub fn cluster(&self) -> String {
        let store = self.folder.path().join("store");
        format!(
            "[cluster]\nqueue = \"nats://127.0.0.1:{}\"\nstore = '{}'\nsilence_seconds = 2\n",
            self.port,
            store.display()
        )
    }

    /// A server that makes the images itself.
    pub fn alone(&self) -> String {
        format!("loras = ['{}']\n{}", self.folder.path().join("loras").display(), model("nano-flux"))
    }

    pub fn server(&self) -> Server {
        Server::start(&(self.alone() + &self.cluster()), &[])
    }

    pub fn server_in(&self, folder: tempfile::TempDir) -> Server {
        Server::start_in(folder, &(self.alone() + &self.cluster()), &[])
    }

    /// A server after `SIGKILL`: what it leaves.
    pub fn killed(&self, server: Server) -> tempfile::TempDir {
        server.signal(libc::SIGKILL);
        server.stop().2
    }

    pub fn worker(&self) -> Worker {
        self.worker_with(&model("nano-flux"))
    }

    /// A worker with these models.
    #[track_caller]
    pub fn worker_with(&self, models: &str) -> Worker {
        let (worker, line) = self.worker_of(models, &self.cluster());
        assert!(line.contains(':'), "the worker did not start: {}", worker.log());
        worker
    }

    /// A worker with these models and this table, and the line that says it is ready, if it is.
    pub fn worker_of(&self, models: &str, cluster: &str) -> (Worker, String) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("serve.toml");
        let state = folder.path().join("state");
        std::fs::write(&config, format!("state = '{}'\n{models}{cluster}", state.display())).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let arguments = ["-v", "worker", "--config", config.to_str().unwrap()];
        let mut process = command(&arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Worker { process, folder }, line)
    }

    /// A folder of so many small images, each its own.
    pub fn photos(&self, count: u32) -> PathBuf {
        let folder = self.folder.path().join("photos");
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..count {
            let image = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, number as u8]));
            image.save(folder.join(format!("{number:03}.png"))).unwrap();
        }
        folder
    }

    /// `kiln batch` into a folder `output`, by workers or not.
    pub fn batch(&self, photos: &Path, model: &str, output: &str, far: bool) -> Command {
        let (output, store) = (self.folder.path().join(output), self.folder.path().join("store"));
        let mut batch = command(&["batch", photos.to_str().unwrap(), "--model", model, "--prompt", "a red apple"]);
        batch.args(["--steps", "4", "--strength", "0.6", "--seed", "3", "--output"]).arg(output);
        if far {
            batch.args(["--queue", &format!("nats://127.0.0.1:{}", self.port), "--store"]).arg(store);
        }
        batch.stdout(Stdio::null());
        batch
    }

    /// Nothing of jobs that have ended stays in the store.
    #[track_caller]
    pub fn is_empty(&self, server: &Server) {
        let files = |folder: &str| {
            let folder = self.folder.path().join("store").join(folder);
            std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().count())
        };
        server.until(|| (files("inputs") + files("results") == 0).then_some(()));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        _ = self.queue.kill();
        _ = self.queue.wait();
    }
}

/// A running worker, which ends with this.
pub struct Worker {
    process: Child,
    folder: tempfile::TempDir,
}

impl Worker {
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Kills it at once.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to stop; how it ended, and how long that took.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        // SAFETY: the process is a child that was not waited for, so its number is its own.
        unsafe { libc::kill(self.process.id() as i32, libc::SIGTERM) };
        (self.process.wait().unwrap(), began.elapsed())
    }

    /// How it ended by itself, and what it said.
    pub fn ended(mut self) -> (ExitStatus, String) {
        (self.process.wait().unwrap(), self.log())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            say(format!("the log of a worker:\n{}", self.log()));
        }
    }
}
