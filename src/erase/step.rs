//! How far an erasure has come, on record.
//!
//! *Takes* and *gives* the row of an erasure, inside the caller's transaction. *Promises* that a step and what it found
//! out are kept together, and that the intent, which names whom it is about, is gone with the first. *Not here*: what
//! is done in a step.

use serde_json::json;

use super::Receipt;
use super::removal::Intent;
use crate::audit;
use crate::clock::Timestamp;
use crate::store::{self, Tx, args};

/// How far an erasure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The wish is noted.
    Asked,
    /// Nothing of the person is in the state's tables.
    Removed,
    /// Readers see a lake without the person.
    Published,
    /// All is done.
    Done,
}

impl Step {
    /// Whether all is done.
    pub fn is_done(self) -> bool {
        self == Self::Done
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Removed => "removed",
            Self::Published => "published",
            Self::Done => "done",
        }
    }

    pub(super) fn by_name(name: &str) -> Result<Self, store::Error> {
        let all = [Self::Asked, Self::Removed, Self::Published, Self::Done];
        all.into_iter().find(|step| step.name() == name).ok_or(store::Error::Unreadable("an erasure's step"))
    }
}

/// What is on record of an erasure.
pub(super) struct OnRecord {
    /// When it was asked for.
    pub(super) asked_at: Timestamp,
    /// Whom it is about; only until their rows are gone.
    pub(super) intent: Option<Intent>,
    /// What was done so far.
    pub(super) receipt: Receipt,
}

impl OnRecord {
    /// What is there of `erasure`.
    pub(super) fn of(tx: &Tx<'_>, erasure: &str) -> Result<Self, store::Error> {
        let found =
            tx.one("SELECT asked_at, plan, receipt FROM erasures WHERE erasure = $1", args![erasure], |row| {
                let receipt = serde_json::from_str(row.str(2)?).map_err(|_| store::Error::Unreadable("a receipt"))?;
                Ok(Self { asked_at: row.at(0)?, intent: Intent::of_record(row.opt_text(1)?.as_deref()), receipt })
            })?;
        found.ok_or(store::Error::Unreadable("an erasure"))
    }
}

/// Notes that the step is done, and what was found out until then.
pub(super) fn note_step(tx: &Tx<'_>, step: Step, receipt: &Receipt) -> Result<(), store::Error> {
    tx.execute(
        "UPDATE erasures SET step = $2, plan = NULL, receipt = $3 WHERE erasure = $1",
        args![&receipt.erasure, step.name(), &json!(receipt).to_string()],
    )
    .map(drop)
}

/// Keeps the whole receipt, with the line of the audit log that tells of it. Only its files are missing then.
pub(super) fn conclude(tx: &Tx<'_>, mut receipt: Receipt, now: Timestamp) -> Result<Receipt, store::Error> {
    let detail = json!({
        "erasure": receipt.erasure, "asked_for": receipt.asked_for, "links": receipt.links, "rows": receipt.rows,
        "snapshots": receipt.snapshots.len(),
    });
    receipt.audit_hash = audit::note(tx, now, "erase", &detail)?;
    note_step(tx, Step::Published, &receipt)?;
    Ok(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_no_program_wrote_is_not_taken_for_the_last_one() {
        for step in [Step::Asked, Step::Removed, Step::Published, Step::Done] {
            assert_eq!(Step::by_name(step.name()).unwrap(), step);
        }
        assert_eq!(Step::by_name("finished").unwrap_err().code(), "state_unreadable");
    }
}
