//! TensorBoard's event files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use image::RgbImage;
use protobuf::Message;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_rs::{record_writer::RecordWriter, summary};

use crate::{
    disk::host,
    error::{Error, Result},
};

/// Prefix of the names of event files; the time in seconds follows.
const START: &str = "events.out.tfevents.";

/// A writer of curves and images for `tensorboard --logdir <run>`. A resumed run adds a file.
pub(in crate::training) struct TensorBoard {
    path: PathBuf,
    records: RecordWriter<File>,
}

impl TensorBoard {
    /// Opens a new event file in `folder`, which is created if necessary. TensorBoard drops the steps from `first` on of older files,
    /// because they are repeated.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(folder: &Path, first: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let older = newest(folder);
        // TensorBoard reads files in the order of their names.
        let time = older.map_or(0, |time| time + 1).max(now() as u64);
        let path = folder.join(format!("{START}{time:010}.{}.{}.0", host(), std::process::id()));
        let file = File::options().write(true).create_new(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut board = Self { path, records: RecordWriter::new(file) };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".into());
        board.write(version, 0)?;
        if older.is_some() {
            let mut session = SessionLog::new();
            session.set_status(SessionLog_SessionStatus::START);
            let mut event = Event::new();
            event.set_session_log(session);
            board.write(event, first)?;
        }
        Ok(board)
    }

    /// A point of the curve `name`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalar(&mut self, name: &str, value: f64, step: u64) -> Result<()> {
        let mut event = Event::new();
        event.set_summary(summary::scalar(name, value as f32));
        self.write(event, step)
    }

    /// An image under `name`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn image(&mut self, name: &str, image: &RgbImage, step: u64) -> Result<()> {
        // The function documents C, H, W; its code reads channels, width, height, and rows of RGB triples.
        let size = [3, image.width() as usize, image.height() as usize];
        let mut event = Event::new();
        event.set_summary(summary::image(name, image.as_raw(), &size));
        self.write(event, step)
    }

    fn write(&mut self, mut event: Event, step: u64) -> Result<()> {
        event.set_wall_time(now());
        event.set_step(step as i64);
        let bytes = event.write_to_bytes().map_err(|e| Error::file(&self.path, e.to_string()))?;
        self.records.write(&bytes).map_err(|e| Error::io(&self.path, e))
    }
}

/// The time of the newest event file.
fn newest(folder: &Path) -> Option<u64> {
    let time = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix(START)?.split('.').next()?.parse().ok()
    };
    fs::read_dir(folder).ok()?.flatten().filter_map(time).max()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
