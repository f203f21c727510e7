//! Why a snapshot could not be published.
//!
//! *Takes* the failures of what a publish is made of. *Gives* words and a stable code for each. *Promises* that each
//! says what to do. *Not here*: when it is tried again, which `pace.rs` says.

use std::path::{Path, PathBuf};

use super::LAKE_MISSING;
use crate::sinks;
use crate::store;

/// Why a snapshot could not be published. Readers then see the one before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the lake cannot be used.
    #[error("the lake cannot be written at {path}: {source}; make room, or give this user the right to write there")]
    Folder {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The lake was published from another state, and this one may be new and empty.
    #[error(
        "the lake was published from another state than this one, so that nothing of it is replaced: put that state back \
         (`vinculo restore` does it from a backup), give this one a lake.url of its own, or run `vinculo rebuild` to publish \
         what this one holds; until then readers see the last snapshot"
    )]
    OtherState,
    /// The lake holds what this state has not seen yet.
    #[error(
        "the lake has snapshot {snapshot} of this state, from its change {change}, and the state does not know of it: an older \
         state was put back. Restore the newer one, or run `vinculo rebuild` to publish what this one holds; until then readers \
         see the last snapshot"
    )]
    OlderState {
        /// The snapshot that the state did not publish.
        snapshot: u32,
        /// Change of the state that it was built from.
        change: i64,
    },
    /// The folder of the lake is empty, or not there on its volume, as when that is not mounted.
    #[error(
        "{path} is empty or missing, and this state published snapshot {snapshot} there: mount the volume of the lake, or run \
         `vinculo rebuild` if the lake was removed on purpose; until then nothing is written there"
    )]
    Bare {
        /// The folder.
        path: PathBuf,
        /// The snapshot that was published last.
        snapshot: u32,
    },
    /// The system gave no thread.
    #[error(
        "no thread could be started: {0}; let this user have more processes (`ulimit -u`, or TasksMax of the service)"
    )]
    Thread(std::io::Error),
    /// A sink failed.
    #[error(transparent)]
    Sink(#[from] sinks::Error),
    /// The state could not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    pub(super) fn at(path: &Path, source: std::io::Error) -> Self {
        Self::Folder { path: path.to_owned(), source }
    }

    /// Whether a file of the snapshot before may be the reason, which is not there or cannot be read.
    pub(super) fn may_be_of_damage(&self) -> bool {
        match self {
            Self::Folder { source, .. } | Self::Sink(sinks::Error::File { source, .. }) => {
                source.kind() == std::io::ErrorKind::NotFound
            }
            Self::Sink(_) => true,
            Self::OtherState | Self::OlderState { .. } | Self::Bare { .. } | Self::Thread(_) | Self::Store(_) => false,
        }
    }

    /// The stable code of this failure, for logs, metrics and `status`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Folder { source, .. } | Self::Sink(sinks::Error::File { source, .. }) => match source.kind() {
                std::io::ErrorKind::StorageFull => "disk_full",
                _ => "lake_not_writable",
            },
            Self::OtherState => "foreign_lake",
            Self::OlderState { .. } => "state_older_than_lake",
            Self::Bare { .. } => LAKE_MISSING,
            Self::Thread(_) => "no_thread",
            Self::Sink(_) => "sink_failed",
            Self::Store(error) => error.code(),
        }
    }
}

/// A publish that failed while somebody waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("nothing was published, and readers see the last snapshot: {message}")]
pub struct Unpublished {
    /// The stable code of the failure.
    pub code: &'static str,
    /// Its words.
    pub message: String,
}

impl From<&Error> for Unpublished {
    fn from(error: &Error) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}
