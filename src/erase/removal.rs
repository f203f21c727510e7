//! The rows of links and users go, and tombstones come.
//!
//! *Takes* and *gives* rows of the state, inside the caller's transaction. *Promises* that no table is forgotten which
//! names a link or a user. *Not here*: the lake and the log, and whom it is about.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::publish;
use crate::store::{self, Tx, args};
use crate::subject::{runs_of, unnamed_webhooks};
use crate::tombstones::{self, Kind, Tombstone};
use crate::widget;

/// What has to be known to go on after a crash; gone with the rows.
#[derive(Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) links: Vec<String>,
    pub(super) external_ids: Vec<String>,
    /// Kind and name of what was asked for, when it is no link.
    pub(super) named: Option<(Kind, String)>,
    /// Whether Belvo deletes the links first.
    pub(super) is_remote: bool,
}

impl Intent {
    /// What is on record, if it is there and can be read.
    pub(super) fn of_record(text: Option<&str>) -> Option<Self> {
        text.and_then(|text| serde_json::from_str(text).ok())
    }
}

/// Removes every row of the links and of the `external_id`s that nobody else has, and gives the number for each table.
///
/// A table is found by its columns `link_id` and `external_id`, so that none is forgotten.
///
/// # Errors
/// [`store::Error`].
pub fn remove(tx: &Tx<'_>, links: &[String], external_ids: &[String]) -> Result<BTreeMap<String, u64>, store::Error> {
    let mut rows = BTreeMap::new();
    let mut note = |table: &str, count: usize| {
        if count > 0 {
            *rows.entry(table.to_owned()).or_insert(0) += count as u64;
        }
    };
    // Before the rows of decisions go.
    let runs = runs_of(tx, links)?;
    // Before their key goes.
    for seq in unnamed_webhooks(tx, links.iter().chain(external_ids))? {
        note("webhooks", tx.execute("DELETE FROM webhooks WHERE seq = $1", args![seq])?);
    }
    for (column, names) in [("link_id", links), ("external_id", external_ids)] {
        for table in tx.tables_with(column)? {
            let sql = format!("DELETE FROM {table} WHERE {column} = $1");
            for name in names {
                note(&table, tx.execute(&sql, args![name])?);
            }
        }
    }
    for link in links {
        widget::forget(tx, link)?;
    }
    for run in runs {
        // What was ordered for the link stays on record, without saying for whom.
        tx.execute("UPDATE runs SET name = NULL, message = NULL WHERE run_id = $1", args![run])?;
    }
    publish::Departure::Removal.note(tx)?;
    Ok(rows)
}

/// Notes what must not come back: the links, and all that is of their users until now. Users are noted also when a link
/// was named, because everything under an `external_id` that no other link has goes with the link. For a person the
/// time of the wish counts: what came later, as when somebody connects again while Belvo is waited for, is not in the
/// plan and stays.
pub(super) fn bury(
    tx: &Tx<'_>,
    intent: &Intent,
    asked_at: Timestamp,
    now: Timestamp,
) -> Result<Vec<Tombstone>, store::Error> {
    let links = intent.links.iter().map(|id| (Kind::Link, id, now));
    let users = intent.external_ids.iter().map(|id| (Kind::ExternalId, id, now));
    let persons =
        intent.named.iter().filter(|(kind, _)| *kind == Kind::Person).map(|(kind, key)| (*kind, key, asked_at));
    links.chain(users).chain(persons).map(|(kind, name, at)| tombstones::bury(tx, kind, name, at)).collect()
}
