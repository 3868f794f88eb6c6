//! What a server finds that the one before it left.

use std::collections::BTreeSet;

use super::{
    job::{Failure, Status},
    journal::Journal,
    queue::Queue,
    record::{MOST_RESTARTS, now},
    results::Results,
};
use crate::error::{Error, Result};

/// The jobs of the journal. Those that a server was in the middle of when it died wait again, but not for ever.
///
/// # Errors
/// The disk refuses.
pub fn taken_up(journal: &Journal, results: &Results) -> Result<Queue> {
    let (mut queue, mut kept) = (Queue::default(), BTreeSet::new());
    for mut record in journal.all()? {
        if record.status == Status::Running && record.starts > MOST_RESTARTS {
            let problem = format!("the server ended unexpectedly {} times while it was running", record.starts);
            let error = Error::setting("job", problem)
                .hint("the log of the server may say why; smaller images need less memory");
            (record.status, record.error, record.finished) = (Status::Failed, Some(Failure::from(&error)), Some(now()));
            journal.finish(&record)?;
        } else if record.status == Status::Running {
            (record.status, record.started) = (Status::Queued, None);
        }
        if record.status == Status::Completed && !record.expired {
            kept.insert(record.id);
        }
        queue.restore(record);
    }
    results.keep_only(|id| kept.contains(&id))?;
    queue.tell_positions();
    Ok(queue)
}
