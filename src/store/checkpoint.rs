//! From the log into the state file, beside the writer.
//!
//! A commit only appends to the log; from time to time what it holds has to be copied into the file itself and synced,
//! which takes as long as many commits. Left to SQLite, the commit that fills the log pays for it, and everyone who
//! waits for that commit. *Promises* nothing about durability: that is the log's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;

use super::{Error, Ownership, connect};

/// Pages of the log that are worth a copy.
const PAGES: i64 = 1_000;

/// Pages of the log at which the writer copies what is left itself, so that the log starts anew: without a pause
/// between commits nobody else can make it.
pub(super) const PAGES_AT_MOST: i64 = 8_000;

/// The thread that copies, as the writer knows it. It ends with this.
pub(super) struct Checkpoints(SyncSender<()>);

impl Checkpoints {
    /// Starts the thread for the state at `path`, which stays owned until it has ended.
    pub(super) fn start(path: &Path, owner: Arc<Ownership>) -> io::Result<Self> {
        let (sender, commits) = sync_channel(1);
        let path = path.to_owned();
        std::thread::Builder::new().name("state-checkpoint".into()).spawn(move || {
            copy_until_closed(&path, &commits);
            drop(owner);
        })?;
        Ok(Self(sender))
    }

    /// Something was committed.
    pub(super) fn note_commit(&self) {
        // A note that waits already says the same.
        let _ = self.0.try_send(());
    }
}

fn copy_until_closed(path: &Path, commits: &Receiver<()>) {
    let mut connection = None;
    while commits.recv().is_ok() {
        let open = match connection.take().map_or_else(|| connect(path), Ok) {
            Ok(open) => open,
            Err(error) => {
                tracing::debug!(code = error.code(), "the log could not be looked at: {error}");
                continue;
            }
        };
        // What failed is copied again the next time, or by the writer, from the log, which has it all.
        match copy(&open) {
            Ok(()) => connection = Some(open),
            Err(error) => tracing::warn!(code = error.code(), "the log could not be copied into the state: {error}"),
        }
    }
}

fn copy(connection: &Connection) -> Result<(), Error> {
    let pages = |mode: &str| {
        connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
    };
    let (logged, copied) = pages("NOOP")?;
    if logged - copied >= PAGES {
        pages("PASSIVE")?;
    }
    Ok(())
}
