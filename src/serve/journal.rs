//! The journal: a SQLite file of all accepted jobs. Acceptance and end of a job are on disk before anyone is told.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    job::{FileBytes, JobId, Status},
    record::Record,
};
use crate::error::{Error, Result};

/// The name of its file.
const FILE: &str = "jobs.sqlite";

/// The version of the schema below.
const VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        key TEXT,
        hash TEXT NOT NULL,
        request TEXT NOT NULL,
        has_image INTEGER NOT NULL,
        has_mask INTEGER NOT NULL,
        status TEXT NOT NULL,
        created REAL NOT NULL,
        started REAL,
        finished REAL,
        starts INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        error TEXT,
        images TEXT NOT NULL,
        expired INTEGER NOT NULL,
        UNIQUE (owner, key)
    );
    CREATE TABLE inputs (id TEXT PRIMARY KEY, image BLOB, mask BLOB);
";

/// Files that came with a request: the image to change, and the mask.
pub type Inputs = (Option<FileBytes>, Option<FileBytes>);

/// A journal in a folder, for one server at a time.
pub struct Journal {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Journal {
    /// Opens the journal in the folder `state`, or creates one.
    ///
    /// # Errors
    /// An I/O error, or the file is not a journal of this version.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        let opened = Connection::open(&path).and_then(|connection| {
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
            Ok((connection, version))
        });
        let (mut connection, version) = opened.map_err(|e| broken(&path, &e))?;
        let begin = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()
        };
        match version {
            0 => begin(&mut connection).map_err(|e| broken(&path, &e))?,
            VERSION => {}
            other => {
                let problem = format!("is a journal of version {other}; this kiln uses version {VERSION}");
                return Err(Error::file(&path, problem).hint("choose another folder for `state`"));
            }
        }
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    /// Applies `change` in one transaction, which is on disk when this returns.
    fn lasting<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection();
        let all = || {
            let transaction = connection.transaction()?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        all().map_err(|e| broken(&self.path, &e))
    }

    /// The same for changes that survive a crash of the process, but perhaps not a power failure.
    fn quickly<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = self.connection();
        let all = || {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let result = change(&connection);
            connection.pragma_update(None, "synchronous", "FULL")?;
            result
        };
        all().map_err(|e| broken(&self.path, &e))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in the middle of a transaction rolls it back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a new job with its files.
    ///
    /// # Errors
    /// An I/O error: then the job is not accepted.
    pub fn accept(&self, record: &Record, (image, mask): &Inputs) -> Result<()> {
        let (request, images) = (json(&record.request), json(&record.images));
        self.lasting(|connection| {
            connection
                .prepare(
                    "INSERT INTO jobs (id, owner, key, hash, request, has_image, has_mask, status, created, starts, attempts, \
                     images, expired) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0)",
                )?
                .execute(params![
                    record.id.to_string(),
                    record.owner,
                    record.key,
                    record.hash,
                    request,
                    record.has_image,
                    record.has_mask,
                    record.status.word(),
                    record.created,
                    record.starts,
                    record.attempts,
                    images,
                ])?;
            if image.is_some() || mask.is_some() {
                let bytes = |file: &Option<FileBytes>| file.as_ref().map(|file| file.0.clone());
                connection.execute(
                    "INSERT INTO inputs (id, image, mask) VALUES (?1, ?2, ?3)",
                    params![record.id.to_string(), bytes(image), bytes(mask)],
                )?;
            }
            Ok(())
        })
    }

    /// The files that came with a job.
    ///
    /// # Errors
    /// An I/O error.
    pub fn inputs(&self, id: JobId) -> Result<Inputs> {
        let row = |row: &Row<'_>| Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, Option<Vec<u8>>>(1)?));
        let found = self
            .connection()
            .query_row("SELECT image, mask FROM inputs WHERE id = ?1", [id.to_string()], row)
            .optional()
            .map_err(|e| broken(&self.path, &e))?;
        let (image, mask) = found.unwrap_or_default();
        Ok((image.map(FileBytes), mask.map(FileBytes)))
    }

    /// Records that a job has started, or waits again.
    ///
    /// # Errors
    /// An I/O error.
    pub fn update(&self, record: &Record) -> Result<()> {
        self.quickly(|connection| set(connection, record))
    }

    /// Records how a job ended.
    ///
    /// # Errors
    /// An I/O error.
    pub fn finish(&self, record: &Record) -> Result<()> {
        self.lasting(|connection| {
            set(connection, record)?;
            connection.prepare("DELETE FROM inputs WHERE id = ?1")?.execute([record.id.to_string()])
        })?;
        Ok(())
    }

    /// Deletes jobs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn forget(&self, ids: &[JobId]) -> Result<()> {
        self.lasting(|connection| {
            let mut forget = connection.prepare("DELETE FROM jobs WHERE id = ?1")?;
            ids.iter().try_for_each(|id| forget.execute([id.to_string()]).map(drop))
        })
    }

    /// All jobs, in the order of their acceptance.
    ///
    /// # Errors
    /// An I/O error, or a row is broken.
    pub fn all(&self) -> Result<Vec<Record>> {
        let connection = self.connection();
        let read = || {
            let mut all = connection.prepare(
                "SELECT id, owner, key, hash, request, has_image, has_mask, status, created, started, finished, starts, attempts, \
                 error, images, expired FROM jobs ORDER BY number",
            )?;
            all.query_map([], record)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| broken(&self.path, &e))
    }
}

/// Writes all fields of a job that may change.
fn set(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    let mut update = connection.prepare(
        "UPDATE jobs SET status = ?2, started = ?3, finished = ?4, starts = ?5, attempts = ?6, error = ?7, images = ?8, \
         expired = ?9 WHERE id = ?1",
    )?;
    update.execute(params![
        record.id.to_string(),
        record.status.word(),
        record.started,
        record.finished,
        record.starts,
        record.attempts,
        record.error.as_ref().map(json),
        json(&record.images),
        record.expired,
    ])?;
    Ok(())
}

/// Reads a job from a row.
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let status: String = row.get(7)?;
    Ok(Record {
        id: row.get::<_, String>(0)?.parse().map_err(|e| unreadable(0, e))?,
        owner: row.get(1)?,
        key: row.get(2)?,
        hash: row.get(3)?,
        request: from_json(4, &row.get::<_, String>(4)?)?,
        has_image: row.get(5)?,
        has_mask: row.get(6)?,
        status: from_json::<Status>(7, &json(&status))?,
        created: row.get(8)?,
        started: row.get(9)?,
        finished: row.get(10)?,
        starts: row.get(11)?,
        attempts: row.get(12)?,
        error: row.get::<_, Option<String>>(13)?.map(|error| from_json(13, &error)).transpose()?,
        images: from_json(14, &row.get::<_, String>(14)?)?,
        expired: row.get(15)?,
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what a journal keeps has text as keys")
}

fn from_json<T: DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|e| unreadable(column, e))
}

fn unreadable(column: usize, e: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
}

fn broken(path: &Path, e: &rusqlite::Error) -> Error {
    Error::file(path, format!("the journal cannot be used ({e})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Error,
        serve::{
            job::{Failure, JobRequest, LoraChoice, Made},
            record::now,
        },
    };

    fn record(owner: &str, key: Option<&str>) -> Record {
        let loras = vec![LoraChoice { name: "ink".into(), scale: 0.7 }];
        let request = JobRequest { seed: Some(u64::MAX), guidance: Some(3.3), loras, ..JobRequest::new("a \"cat\"\n") };
        Record {
            id: JobId::new(),
            owner: owner.into(),
            key: key.map(Into::into),
            hash: "hash".into(),
            request,
            has_image: true,
            has_mask: false,
            status: Status::Queued,
            created: now(),
            started: None,
            finished: None,
            starts: 0,
            attempts: 1,
            error: None,
            images: Vec::new(),
            expired: false,
        }
    }

    #[test]
    fn jobs_are_read_back_as_they_were_written_in_the_order_of_acceptance() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let (mut first, second) = (record("a", Some("key")), record("b", Some("key")));
        let files = (Some(FileBytes(vec![0, 255, 7])), None);
        journal.accept(&first, &files).unwrap();
        journal.accept(&second, &(None, None)).unwrap();
        assert!(journal.accept(&record("a", Some("key")), &(None, None)).is_err(), "a key belongs to one job");
        assert_eq!(journal.inputs(first.id).unwrap(), files);
        (first.status, first.started, first.starts) = (Status::Running, Some(now()), 1);
        journal.update(&first).unwrap();
        drop(journal);

        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.all().unwrap(), [first.clone(), second.clone()]);
        first.status = Status::Completed;
        first.images = vec![Made { seed: u64::MAX, width: 64, height: 32, bytes: 77 }];
        first.error = Some(Failure::from(&Error::setting("seed", "is odd").hint("use 2")));
        journal.finish(&first).unwrap();
        assert_eq!(journal.inputs(first.id).unwrap(), (None, None), "nobody needs them any more");
        journal.forget(&[second.id]).unwrap();
        assert_eq!(journal.all().unwrap(), [first]);
    }

    #[test]
    fn a_file_of_another_version_or_kind_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.connection().pragma_update(None, "user_version", 9).unwrap();
        drop(journal);
        let error = Journal::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("version 9") && error.contains("hint: "), "{error}");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "no database at all, whatever its name says").unwrap();
        assert!(Journal::open(folder.path()).err().unwrap().to_string().contains(FILE));
        assert!(std::fs::read(folder.path().join(FILE)).unwrap().starts_with(b"no database"));
    }
}
