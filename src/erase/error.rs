//! Why nothing, or not everything, was erased.
//!
//! *Takes* the failures of what an erasure is made of. *Gives* words and a stable code for each. *Promises* to tell a
//! refusal, which would come again, from what may end by itself. *Not here*: how often it is tried again.

use std::io;
use std::path::PathBuf;

use crate::belvo::{Code, Decision};
use crate::delete;
use crate::publish;
use crate::store;
use crate::subject;
use crate::tombstones::FileError;

/// Why nothing, or not everything, was erased.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody was found who could be erased.
    #[error(transparent)]
    Subject(subject::Error),
    /// The links are to be deleted at Belvo too, and this command does not talk to Belvo.
    #[error("an erasure also waits for Belvo, which is asked by `vinculo serve`")]
    NeedsBelvo,
    /// Belvo did not take the wish to delete a link.
    #[error(
        "nothing was erased, and the order is taken back, because Belvo does not delete the link: order it again once that is \
         mended, or without --remote ({0})"
    )]
    Belvo(Box<delete::Error>),
    /// Belvo took the wish to delete some of the links, and not all.
    #[error("Belvo has taken {taken} of {links} links to delete and not the next: {source}")]
    BelvoPartly {
        /// Links that Belvo deletes.
        taken: usize,
        /// Links that it is to delete.
        links: usize,
        /// What it said of the next.
        source: Box<delete::Error>,
    },
    /// It was begun, and something stands in the way of its end.
    #[error("{0}; once that is mended, `vinculo serve` finishes the erasure by itself, and no other order is needed")]
    Unfinished(Box<Error>),
    /// The receipt cannot be written.
    #[error("{path} cannot be written: {source}; make room, or give this user the right to write there")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file beside the state that says who was erased is not this state's, or cannot be used.
    #[error(transparent)]
    Tombstones(FileError),
    /// The lake could not be published anew.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// The state refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure, for logs, metrics and `status`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Subject(error) => error.code(),
            Self::NeedsBelvo => "needs_belvo",
            Self::Belvo(error) | Self::BelvoPartly { source: error, .. } => error.code(),
            Self::Unfinished(error) => error.code(),
            Self::File { .. } => "receipt_not_writable",
            Self::Tombstones(error) => error.code(),
            Self::Publish(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    /// Whether Belvo has said no, and would say so again.
    pub(super) fn is_refusal(&self) -> bool {
        let Self::Belvo(error) = self else { return false };
        match &**error {
            delete::Error::Belvo(failure) => {
                failure.code != Code::SimulatedMismatch
                    && !matches!(failure.kind, Decision::Retry | Decision::RetryAfter(_) | Decision::Stop)
            }
            delete::Error::Refused => true,
            delete::Error::Store(_) => false,
        }
    }
}

impl From<subject::Error> for Error {
    fn from(error: subject::Error) -> Self {
        match error {
            subject::Error::Store(error) => Self::Store(error),
            other => Self::Subject(other),
        }
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Store(error) => Self::Store(error),
            other => Self::Tombstones(other),
        }
    }
}
