//! Why an order is not taken.

use chrono::NaiveDate;

use crate::erase;
use crate::features::runs::{self as features, Mode};
use crate::store;

/// Why an order is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nothing to refresh.
    #[error("no tracked link fits: name one with its link id, or run `vinculo links sync` first")]
    NoLink,
    /// Some of the users that were named have no link.
    #[error(
        "{unlinked} of {named} external ids have no tracked link, so nothing was ordered: look at the spelling, or run \
         `vinculo links sync` first"
    )]
    Unlinked {
        /// How many have none.
        unlinked: usize,
        /// How many were named.
        named: usize,
    },
    /// Neither the state nor Belvo knows a link.
    #[error("Belvo does not know a link that was named, and nothing of it is kept here: look at the spelling")]
    UnknownLink,
    /// The link was erased.
    #[error(
        "this link was erased: nothing of it is asked for or written down again; what Belvo still holds is deleted there"
    )]
    Erased,
    /// The text names no link.
    #[error("{0}")]
    NotALinkId(#[from] crate::link_id::NotALinkId),
    /// There is no such job.
    #[error("there is no such job; there are: {known}")]
    NoJob {
        /// What there is.
        known: String,
    },
    /// There is no such webhook.
    #[error("there is no webhook {0} in the log; `vinculo webhooks list` shows them")]
    NoWebhook(i64),
    /// Nobody can be erased who is not held.
    #[error(transparent)]
    Erase(#[from] erase::Error),
    /// The features of that date cannot be computed, or not again.
    #[error("{0}")]
    Features(features::Error),
    /// There is no such row to keep.
    #[error("credit_features has no {1} row of this link for {0}: run `vinculo features --as-of {0}` first")]
    NoRow(NaiveDate, Mode),
    /// The decision keeps another row.
    #[error("this decision keeps another row already; give the new one an id of its own")]
    DecisionTaken,
    /// The published database cannot be read.
    #[error("the published database cannot be read: {0}; `vinculo verify` says what is wrong with it")]
    Lake(#[from] duckdb::Error),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Refused {
    /// The stable code of this refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLink | Self::Unlinked { .. } | Self::UnknownLink => "no_such_link",
            Self::Erased => "link_erased",
            Self::NotALinkId(_) => "not_a_link_id",
            Self::NoJob { .. } => "no_such_job",
            Self::NoWebhook(_) => "no_such_webhook",
            Self::Erase(error) => error.code(),
            Self::Features(error) => error.code(),
            Self::NoRow(..) => "no_such_row",
            Self::DecisionTaken => "decision_taken",
            Self::Lake(_) => "lake_not_readable",
            Self::Store(error) => error.code(),
        }
    }
}

impl From<features::Error> for Refused {
    fn from(error: features::Error) -> Self {
        match error {
            features::Error::Store(error) => Self::Store(error),
            other => Self::Features(other),
        }
    }
}
