//! Erasures on record: asked for, and how far each has come.
//!
//! *Takes* and *gives* rows of the state, inside the caller's transaction. *Promises* that a row of an erasure only
//! ever comes further. *Not here*: the steps.

use serde_json::json;

use super::{Receipt, Step};
use crate::clock::Timestamp;
use crate::store::{Error, Tx, args};

/// An erasure that was begun and is not done. It has no printed form, because its intent names whom it is about.
#[derive(Clone)]
pub struct Begun {
    /// Its id.
    pub erasure: String,
    asked_at: Timestamp,
    asked_for: String,
    reason: String,
    pub(super) step: Step,
    /// Whom it is about, as it is on record; only until their rows are gone.
    pub(super) intent: Option<String>,
    receipt: String,
}

impl Begun {
    pub(super) fn new(receipt: &Receipt, asked_at: Timestamp, step: Step, intent: Option<String>) -> Self {
        let Receipt { erasure, asked_for, reason, .. } = receipt.clone();
        Self { erasure, asked_at, asked_for, reason, step, intent, receipt: json!(receipt).to_string() }
    }

    /// Those of the state, the oldest first.
    ///
    /// # Errors
    /// [`Error::Database`], or [`Error::Unreadable`].
    pub fn all(tx: &Tx<'_>) -> Result<Vec<Self>, Error> {
        let sql = "SELECT erasure, asked_at, asked_for, reason, step, plan, receipt FROM erasures WHERE step <> $1 \
                   ORDER BY asked_at";
        tx.all(sql, args![Step::Done.name()], |row| {
            Ok(Self {
                erasure: row.text(0)?,
                asked_at: row.at(1)?,
                asked_for: row.text(2)?,
                reason: row.text(3)?,
                step: Step::by_name(row.str(4)?)?,
                intent: row.opt_text(5)?,
                receipt: row.text(6)?,
            })
        })
    }

    /// How many there are.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn count(tx: &Tx<'_>) -> Result<u64, Error> {
        tx.count("SELECT count(*) FROM erasures WHERE step <> $1", args![Step::Done.name()])
    }

    /// Puts it on record. One that is there and has come as far stays as it is.
    ///
    /// # Errors
    /// [`Error::Database`], or [`Error::Unreadable`].
    pub fn keep(&self, tx: &Tx<'_>) -> Result<(), Error> {
        let held = "SELECT step FROM erasures WHERE erasure = $1";
        let held = tx.one(held, args![&self.erasure], |row| Step::by_name(row.str(0)?))?;
        if held.is_some_and(|held| held >= self.step) {
            return Ok(());
        }
        tx.execute(
            "INSERT INTO erasures (erasure, asked_at, asked_for, reason, step, plan, receipt) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (erasure) DO UPDATE SET step = excluded.step, plan = excluded.plan, receipt = excluded.receipt",
            args![
                &self.erasure,
                self.asked_at,
                &self.asked_for,
                &self.reason,
                self.step.name(),
                self.intent.as_deref(),
                &self.receipt
            ],
        )
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn an_erasure_only_ever_comes_further() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let receipt = Receipt { erasure: "1".to_owned(), ..Receipt::default() };
        let at = |step, intent: Option<&str>| {
            Begun::new(&receipt, Timestamp::from_micros(7), step, intent.map(str::to_owned))
        };
        for (kept, expected) in [
            (at(Step::Asked, Some("whom")), Some((Step::Asked, Some("whom")))),
            (at(Step::Asked, Some("others")), Some((Step::Asked, Some("whom")))),
            (at(Step::Published, None), Some((Step::Published, None))),
            (at(Step::Removed, None), Some((Step::Published, None))),
            (at(Step::Done, None), None),
            (at(Step::Asked, Some("whom")), None),
        ] {
            let all = store.write(move |tx| kept.keep(tx).and_then(|()| Begun::all(tx))).await.unwrap();
            let all: Vec<_> = all.iter().map(|begun| (begun.step, begun.intent.as_deref())).collect();
            assert_eq!(all, expected.into_iter().collect::<Vec<_>>());
            assert_eq!(store.read(Begun::count).await.unwrap(), all.len() as u64);
        }
    }
}
