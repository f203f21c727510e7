//! How the queue stands, to those who look at it: how much waits, what is due, and the state of each refresh. It
//! changes nothing.

use std::collections::BTreeMap;

use super::{Priority, listed};
use crate::belvo::Code;
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::store::{Error, Tx, args};

/// What still waits or runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Refreshes that wait for their turn or run.
    pub pending: u64,
    /// Of these, those that failed and will be tried again.
    pub retrying: u64,
    /// Refreshes that wait for a person.
    pub blocked: u64,
}

/// Counts what waits. A received webhook that is not followed up yet counts as one pending refresh.
///
/// # Errors
/// [`Error::Database`].
pub fn backlog(tx: &Tx<'_>) -> Result<Backlog, Error> {
    let counted = tx.one(
        "SELECT count(CASE WHEN due_at IS NOT NULL OR lease IS NOT NULL THEN 1 END) \
         + (SELECT count(*) FROM webhooks WHERE outcome = 'received'), \
         count(CASE WHEN due_at IS NOT NULL AND attempts > 0 THEN 1 END), count(blocked_reason) FROM refreshes",
        args![],
        |row| Ok(Backlog { pending: row.count(0)?, retrying: row.count(1)?, blocked: row.count(2)? }),
    )?;
    Ok(counted.unwrap_or_default())
}

/// What is due now, by who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Due {
    /// Refreshes that webhooks want.
    pub webhook: u64,
    /// Refreshes that a person wants.
    pub operator: u64,
    /// Refreshes that a job wants.
    pub schedule: u64,
    /// Second looks at what was missing from a list.
    pub confirm: u64,
}

/// Counts what is due and not under way.
///
/// # Errors
/// [`Error::Database`].
pub fn due(tx: &Tx<'_>, now: Timestamp) -> Result<Due, Error> {
    let count = |priority: Priority| {
        let sql = "SELECT count(*) FROM refreshes WHERE priority = $1 AND due_at <= $2 AND lease IS NULL";
        tx.count(sql, args![priority.number(), now])
    };
    Ok(Due {
        webhook: count(Priority::Webhook)? + count(Priority::Unknown)?,
        operator: count(Priority::Operator)?,
        schedule: count(Priority::Schedule)?,
        confirm: count(Priority::Confirm)?,
    })
}

/// When the refresh that has waited longest fell due; `None` when nothing that is due waits.
///
/// # Errors
/// [`Error::Database`].
pub fn oldest_due(tx: &Tx<'_>, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    // One step into the index for each.
    let sql = "SELECT min(due_at) FROM refreshes WHERE priority = $1 AND due_at IS NOT NULL AND lease IS NULL";
    let mut oldest = None;
    for priority in Priority::ALL {
        let since = tx.one(sql, args![priority.number()], |row| row.opt_at(0))?.flatten();
        oldest = since.filter(|since| *since <= now).into_iter().chain(oldest).min();
    }
    Ok(oldest)
}

/// State of a refresh; the default is one that was never requested.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Whether it runs.
    pub is_leased: bool,
    /// When it runs next; `None` when nobody wants it.
    pub due_at: Option<Timestamp>,
    /// Failed tries since it last came to something.
    pub attempts: i64,
    /// Code of the last failure; `None` when it came to something.
    pub failure: Option<String>,
    /// When it failed last.
    pub failed_at: Option<Timestamp>,
    /// Why it waits for a person.
    pub blocked_reason: Option<String>,
    /// When its last fetch began.
    pub started_at: Option<Timestamp>,
    /// When its last complete list came.
    pub fetched_at: Option<Timestamp>,
    /// When Belvo collected the newest of its records.
    pub collected_at: Option<Timestamp>,
    /// What the last webhook counted.
    pub webhook_count: Option<i64>,
    /// Number of the last change in which a record of it was seen otherwise than before.
    pub sighted_seq: Option<i64>,
    /// `None` for one that was never requested.
    priority: Option<Priority>,
}

impl State {
    /// That of a link's resource; `None` when nobody ever wanted it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn of(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Option<Self>, Error> {
        tx.one(
            "SELECT lease IS NOT NULL, due_at, attempts, last_error_code, last_error_at, blocked_reason, last_fetched_at, \
             last_collected_at, webhook_count, sighted_seq, priority, last_started_at FROM refreshes WHERE link_id = $1 AND resource = $2",
            args![link_id, resource.name],
            |row| {
                Ok(Self {
                    is_leased: row.int(0)? == 1,
                    due_at: row.opt_at(1)?,
                    attempts: row.int(2)?,
                    failure: row.opt_text(3)?,
                    failed_at: row.opt_at(4)?,
                    blocked_reason: row.opt_text(5)?,
                    fetched_at: row.opt_at(6)?,
                    collected_at: row.opt_at(7)?,
                    webhook_count: row.opt_int(8)?,
                    sighted_seq: row.opt_int(9)?,
                    priority: Some(Priority::of(row.int(10)?)?),
                    started_at: row.opt_at(11)?,
                })
            },
        )
    }

    /// Code of the last failure, or why it waits for somebody; `None` when it came to something.
    pub fn trouble(&self) -> Option<&str> {
        self.failure.as_deref().or(self.blocked_reason.as_deref())
    }

    /// Whether nothing is about to happen: it neither runs nor is wanted. A second look that a list has booked for
    /// later, because it lacked a row, is not what anybody asked for.
    pub fn is_idle(&self, now: Timestamp) -> bool {
        let is_booked = |due| self.priority == Some(Priority::Confirm) && due > now;
        !self.is_leased && self.due_at.is_none_or(is_booked)
    }
}

/// Whether any refresh runs or is due. Those that failed wait for their next try.
///
/// # Errors
/// [`Error::Database`].
pub fn is_busy(tx: &Tx<'_>, now: Timestamp) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM refreshes WHERE lease IS NOT NULL OR due_at <= $1 LIMIT 1";
    Ok(tx.one(sql, args![now], |_| Ok(()))?.is_some())
}

/// How many refreshes failed last with each code.
///
/// # Errors
/// [`Error::Database`].
pub fn errors(tx: &Tx<'_>) -> Result<BTreeMap<String, u64>, Error> {
    let sql = "SELECT last_error_code, count(*) FROM refreshes WHERE last_error_code IS NOT NULL GROUP BY 1";
    Ok(tx.all(sql, args![], |row| Ok((row.text(0)?, row.count(1)?)))?.into_iter().collect())
}

/// How many refreshes wait because Belvo refuses what they ask for. Links that Belvo does not know are left out: it may
/// still get to know them, and the failure concerns one link only.
///
/// # Errors
/// [`Error::Database`].
pub fn refused(tx: &Tx<'_>) -> Result<u64, Error> {
    let codes = listed(Code::refused().filter(|code| *code != Code::NotFound));
    let sql = format!(
        "SELECT count(*) FROM refreshes WHERE due_at IS NOT NULL AND attempts > 0 AND last_error_code IN ({codes})"
    );
    tx.count(&sql, args![])
}
