//! The row of features that a decision used, kept in the state as it was: a person may ask for a review years later,
//! when the lake holds a corrected history and other formulas.

use chrono::NaiveDate;
use serde_json::{Map, Value};

use super::runs::Mode;
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::store::{self, FrozenPlace, Store, Tx, args};
use crate::tombstones;

/// A decision, and which row it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The operator's id of the decision.
    pub decision_id: String,
    /// The link.
    pub link_id: LinkId,
    /// The date of the row.
    pub as_of: NaiveDate,
    /// Its mode.
    pub mode: Mode,
}

/// A kept row.
#[derive(Debug, Clone, PartialEq)]
pub struct Frozen {
    /// The operator's id of the decision.
    pub decision_id: String,
    /// The link.
    pub link_id: LinkId,
    /// The date of the row.
    pub as_of: NaiveDate,
    /// Its mode.
    pub mode: Mode,
    /// When it was kept.
    pub frozen_at: Timestamp,
    /// Its values by column; amounts and instants as text.
    pub row: Map<String, Value>,
}

/// What became of a row that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezing {
    /// It is kept.
    Done,
    /// The decision has a row already, which stays.
    DecisionHasOne,
    /// The link was erased; nothing of it is written down again.
    LinkErased,
}

/// Keeps a row.
///
/// # Errors
/// [`store::Error`].
pub async fn keep(store: &Store, frozen: Frozen) -> Result<Freezing, store::Error> {
    store
        .write(move |tx| {
            // The row may come from a snapshot that still shows whom an erasure has just removed here.
            if tombstones::is_erased(tx, &frozen.link_id)? {
                return Ok(Freezing::LinkErased);
            }
            let Frozen { decision_id, link_id, as_of, mode, frozen_at, row } = &frozen;
            let (date, body) = (as_of.to_string(), Value::Object(row.clone()).to_string());
            // Under the link's key, as every answer that it was computed from.
            let body = FrozenPlace { link_id: link_id.as_str(), decision_id }.seal(tx, body.as_bytes())?;
            let added = tx.execute(
                "INSERT INTO frozen_features (decision_id, link_id, as_of_date, pit_mode, frozen_at, body) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (decision_id) DO NOTHING",
                args![decision_id.as_str(), link_id, date.as_str(), mode.name(), *frozen_at, &*body],
            )?;
            Ok(if added == 1 { Freezing::Done } else { Freezing::DecisionHasOne })
        })
        .await
}

/// The row that a decision keeps.
///
/// # Errors
/// [`store::Error`].
pub fn of(tx: &Tx<'_>, decision_id: &str) -> Result<Option<Frozen>, store::Error> {
    const WHAT: &str = "a kept row of features";
    tx.one(
        "SELECT decision_id, link_id, as_of_date, pit_mode, frozen_at, body FROM frozen_features WHERE decision_id = $1",
        args![decision_id],
        |row| {
            let place = FrozenPlace { link_id: row.str(1)?, decision_id };
            let body = place.open(tx, row.bytes(5)?)?;
            Ok(Frozen {
                decision_id: row.text(0)?,
                link_id: row.link_id(1)?,
                as_of: row.str(2)?.parse().map_err(|_| store::Error::Unreadable(WHAT))?,
                mode: Mode::by_name(row.str(3)?)?,
                frozen_at: row.at(4)?,
                row: serde_json::from_slice(&body).map_err(|_| store::Error::Unreadable(WHAT))?,
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    #[tokio::test]
    async fn a_decision_keeps_its_first_row_and_nothing_is_kept_of_an_erased_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let frozen = |income: &str| Frozen {
            decision_id: "d-1".into(),
            link_id: LINK.parse().unwrap(),
            as_of: NaiveDate::from_ymd_opt(2026, 6, 15).unwrap(),
            mode: Mode::Strict,
            frozen_at: Timestamp::from_micros(7),
            row: Map::from_iter([("income_last_brl".to_owned(), Value::from(income))]),
        };
        assert_eq!(keep(&store, frozen("1.0000")).await.unwrap(), Freezing::Done);
        assert_eq!(keep(&store, frozen("2.0000")).await.unwrap(), Freezing::DecisionHasOne);
        assert_eq!(store.read(|tx| of(tx, "d-1")).await.unwrap(), Some(frozen("1.0000")));
        let now = Timestamp::from_micros(9);
        store.write(move |tx| tombstones::bury(tx, tombstones::Kind::Link, LINK, now).map(drop)).await.unwrap();
        let other = Frozen { decision_id: "d-2".into(), ..frozen("3.0000") };
        assert_eq!(keep(&store, other).await.unwrap(), Freezing::LinkErased);
        assert_eq!(store.read(|tx| of(tx, "d-2")).await.unwrap(), None);
    }
}
