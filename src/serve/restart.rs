//! Restores the state that an earlier server left.

use std::collections::BTreeSet;

use super::{
    job::{Failure, Status},
    journal::Journal,
    queue::Queue,
    record::{MOST_RESTARTS, now},
    results::Results,
};
use crate::error::{Error, Result};

/// Restores the jobs of the journal. Jobs that were running when a server died wait again, a limited number of times;
/// without a limit if workers elsewhere make the images, as they did not die.
///
/// # Errors
/// An I/O error.
pub fn taken_up(journal: &Journal, results: &Results, elsewhere: bool) -> Result<Queue> {
    let (mut queue, mut kept) = (Queue::default(), BTreeSet::new());
    for mut record in journal.all()? {
        if record.status == Status::Running && record.starts > MOST_RESTARTS && !elsewhere {
            let problem = format!("the server ended unexpectedly {} times while it was running", record.starts);
            let error =
                Error::setting("job", problem).hint("the server's log may say why; smaller images need less memory");
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
