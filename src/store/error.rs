//! Why the state could not be opened, read or written, and what that says of the next write.

use std::io;
use std::path::PathBuf;

use super::WAITING_WRITES;

/// The code of a file that is not as it was written.
pub const DAMAGED: &str = "state_damaged";

/// The code of a disk without room.
pub const DISK_FULL: &str = "disk_full";

/// The code of a database that refused for a reason that has no code of its own.
pub const FAILED: &str = "state_failed";

/// Why the state could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process owns the state.
    #[error(
        "the state {path} is held by another instance (process {pid}): stop that one first, or point state.url elsewhere"
    )]
    Held {
        /// The state file.
        path: PathBuf,
        /// The owner's process id, as it wrote it; `unknown` when it has not yet.
        pid: String,
    },
    /// The state was written by a later version of this program.
    #[error(
        "the state {path} has schema {found}, and this program knows up to {known}: run the newer vinculo that wrote it"
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Schema version of the file.
        found: i64,
        /// Latest schema version of this program.
        known: i64,
    },
    /// There is no state yet.
    #[error("there is no state at {0}: run `vinculo serve` or `vinculo refresh` first")]
    Missing(PathBuf),
    /// A folder or file of the state cannot be used.
    #[error("the state cannot be used at {path}: {source}; let this user read and write there")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no thread.
    #[error(
        "no thread could be started: {0}; let this user have more processes (`ulimit -u`, or TasksMax of the service)"
    )]
    Thread(io::Error),
    /// The cipher refused.
    #[error("a body could not be encrypted, and nothing of it was kept: this is a defect to report")]
    NotEncrypted,
    /// More writes wait than the writer can take.
    #[error("the state is overloaded: {WAITING_WRITES} writes are waiting")]
    Overloaded,
    /// Somebody reads for too long.
    #[error("the state's log could not be emptied, because somebody reads the state: end long readers and try again")]
    Busy,
    /// The writer has ended.
    #[error("the state is closed, because the program stops")]
    Closed,
    /// The work panicked.
    #[error("a write to the state panicked, and nothing of it was kept: this is a defect to report")]
    Panicked,
    /// The database refused.
    #[error("the state database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A commit that this write was part of failed; nothing of it was kept.
    #[error("the state could not be made durable ({0})")]
    NotDurable(&'static str),
    /// What this write depended on is no longer so; nothing of it was kept.
    #[error("{0} was taken over by another worker")]
    Overtaken(&'static str),
    /// The bodies are encrypted, and no key was given.
    #[error(
        "the state is encrypted and state.encryption_key is empty: write the key that the state was made with; nothing was written"
    )]
    KeyMissing,
    /// The bodies are encrypted with another key.
    #[error(
        "state.encryption_key is not the key of this state: write the right one, and while you replace it the old one into \
         state.encryption_key_previous; nothing was written"
    )]
    KeyWrong,
    /// What is stored does not have the form that was written.
    #[error("the state holds something unreadable in {0}: restore a backup")]
    Unreadable(&'static str),
}

/// What was `opened`; `None` where what is kept of it is damaged, which is no reason to do without all else. A key that
/// is missing or wrong is one.
///
/// # Errors
/// Any other than [`Error::Unreadable`].
pub fn unless_damaged<T>(opened: Result<T, Error>) -> Result<Option<T>, Error> {
    match opened {
        Err(Error::Unreadable(_)) => Ok(None),
        opened => opened.map(Some),
    }
}

impl Error {
    /// Whether another write may succeed where this one failed: it is not the state itself that does. Of a commit that
    /// failed nobody knows, because it was of many writes, and whatever was in its way may pass.
    pub fn is_about_one_write(&self) -> bool {
        match self {
            Self::NotEncrypted | Self::Panicked | Self::Overtaken(_) | Self::Unreadable(_) => true,
            Self::Database(error) => database_code(error) == FAILED,
            Self::Held { .. }
            | Self::Newer { .. }
            | Self::Missing(_)
            | Self::Folder { .. }
            | Self::Thread(_)
            | Self::Overloaded
            | Self::Busy
            | Self::Closed
            | Self::NotDurable(_)
            | Self::KeyMissing
            | Self::KeyWrong => false,
        }
    }

    /// Whether something of what is stored is not as it was written, and the rest may be.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Unreadable(_)) || self.code() == DAMAGED
    }

    /// The stable code of this failure, for logs, metrics and `status`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Held { .. } => "state_held",
            Self::Newer { .. } => "state_newer",
            Self::Missing(_) => "state_missing",
            Self::Folder { .. } => "state_folder",
            Self::Thread(_) => "no_thread",
            Self::NotEncrypted => FAILED,
            Self::Overloaded => "overloaded",
            Self::Busy => "state_busy",
            Self::Closed => "state_closed",
            Self::Panicked => "panic",
            Self::Database(error) => database_code(error),
            Self::NotDurable(code) => code,
            Self::Overtaken(_) => "overtaken",
            Self::KeyMissing => "state_key_missing",
            Self::KeyWrong => "state_key_wrong",
            Self::Unreadable(_) => "state_unreadable",
        }
    }
}

fn database_code(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "state_locked",
        Some(ErrorCode::DiskFull) => DISK_FULL,
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => "state_read_only",
        Some(ErrorCode::SystemIoFailure) => "state_io",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DAMAGED,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn another_write_may_succeed_only_where_this_one_was_at_fault() {
        let database = |code| Error::Database(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for (error, is_about_one) in [
            (Error::Panicked, true),
            (Error::Overtaken("a refresh"), true),
            (Error::Unreadable("a body"), true),
            (database(ffi::SQLITE_CONSTRAINT), true),
            (database(ffi::SQLITE_FULL), false),
            (database(ffi::SQLITE_IOERR), false),
            (Error::Overloaded, false),
            (Error::NotDurable(DISK_FULL), false),
            // Such as too little memory for a moment: the whole commit fails, whatever it was of.
            (Error::NotDurable(FAILED), false),
        ] {
            assert_eq!(error.is_about_one_write(), is_about_one, "{error:?}");
        }
    }
}
