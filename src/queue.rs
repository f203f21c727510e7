//! Durable, coalescing, leased refreshes: which link and resource to look at again, and when.
//!
//! A mark says where to look, never what was seen: any number of marks for one `(link, resource)` before its fetch begins
//! cost one fetch, and a mark that comes later costs another. Nothing is told apart by an id of Belvo's, because none of
//! them is unique.
//!
//! *Takes* marks inside the caller's own transaction, so that a webhook and its mark are durable together. *Gives* due
//! [`Refresh`]es to the worker, each to one. *Promises* that only the marks that a fetch saw when it began are cleared by
//! it. *Not here*: who marks, and what a refresh does.

use std::time::Duration;

use tokio::sync::watch;

use crate::belvo::LinkId;
use crate::clock::{Clock, Timestamp};
use crate::resources::Resource;
use crate::store::{Error, Row, Store, Tx, args};

/// Webhooks for a link and resource whose fetch began less than this ago wait until it is over, so that a burst of
/// copies costs two fetches: the one that the first copy started, and one after the last.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Who wants a refresh; decides who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Belvo said that there is something new.
    Webhook,
    /// A person asked.
    Operator,
    /// A job asked.
    Schedule,
    /// A row was missing from a list; a second list has to agree.
    Confirm,
}

impl Trigger {
    fn priority(self) -> i64 {
        match self {
            Self::Webhook => 0,
            Self::Operator => 1,
            Self::Schedule | Self::Confirm => 2,
        }
    }
}

/// One unit of work: a link's resource that somebody wants to be looked at again.
#[derive(Debug, Clone)]
pub struct Refresh {
    /// The link.
    pub link_id: LinkId,
    /// What to list.
    pub resource: &'static Resource,
    /// Whether a webhook is among those who want it; it may use the reserve of the budget.
    pub is_urgent: bool,
    /// Failed tries before this one.
    pub attempts: u32,
    /// What the latest webhook counted, when one did.
    pub webhook_count: Option<i64>,
    lease: i64,
}

/// Marks `(link, resource)` as worth a look, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn mark(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource, trigger: Trigger, now: Timestamp) -> Result<(), Error> {
    mark_at(tx, link_id, resource, trigger, now)
}

/// Like [`mark`], for a look not before `not_before`.
///
/// # Errors
/// [`Error::Database`].
pub fn mark_at(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    trigger: Trigger,
    not_before: Timestamp,
) -> Result<(), Error> {
    let standing = tx.one(
        "SELECT due_at, priority, attempts, last_started_at FROM refreshes WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name],
        |row| Ok((row.opt_at(0)?, row.int(1)?, row.int(2)?, row.opt_at(3)?)),
    )?;
    let Some((due, priority, attempts, last_started)) = standing else {
        tx.execute(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority) VALUES ($1, $2, 1, $3, $4)",
            args![link_id, resource.name, not_before, trigger.priority()],
        )?;
        return Ok(());
    };
    let settled = match (trigger, last_started) {
        (Trigger::Webhook, Some(started)) => not_before.max(started + SETTLE),
        _ => not_before,
    };
    let (due, priority) = match due {
        // Belvo asked for patience; news do not shorten it.
        Some(due) if attempts > 0 => (due, priority.min(trigger.priority())),
        Some(due) => (due.min(settled), priority.min(trigger.priority())),
        None => (settled, trigger.priority()),
    };
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority],
    )?;
    Ok(())
}

/// Records what a webhook counted for `(link, resource)`, inside the caller's transaction, after [`mark`]. A webhook that
/// counted nothing voids the count of those before it, unless their fetch is still to begin.
///
/// # Errors
/// [`Error::Database`].
pub fn note_count(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource, count: Option<i64>) -> Result<(), Error> {
    tx.execute(
        "UPDATE refreshes SET webhook_count = $3 WHERE link_id = $1 AND resource = $2 AND ($3 IS NOT NULL OR marks = cleared + 1)",
        args![link_id, resource.name, count],
    )?;
    Ok(())
}

/// What a refresh came to, for [`settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A complete list is in the same transaction.
    Listed {
        /// When the list was begun.
        started_at: Timestamp,
        /// When it was complete.
        fetched_at: Timestamp,
        /// Newest `collected_at` among its items.
        collected_at: Option<Timestamp>,
        /// Number of the change, when a record has a new version.
        content_seq: Option<i64>,
        /// Number of the change, when the latest sightings of the records differ from those before.
        sighted_seq: Option<i64>,
        /// Number of the change.
        touched_seq: i64,
    },
    /// Try again later.
    Postponed {
        /// Stable code of the failure.
        code: &'static str,
        /// When it failed.
        at: Timestamp,
        /// Not before this instant.
        until: Timestamp,
    },
    /// Wait for a person or for news from Belvo.
    Blocked {
        /// Stable code of the failure.
        code: &'static str,
        /// When it failed.
        at: Timestamp,
    },
}

/// Ends the lease of `refresh`, inside the transaction that holds what came of it. False when the lease was lost: then
/// the caller must keep nothing.
///
/// # Errors
/// [`Error::Database`].
pub fn settle(tx: &Tx<'_>, refresh: &Refresh, outcome: Outcome) -> Result<bool, Error> {
    let (link_id, resource, lease) = (&refresh.link_id, refresh.resource.name, refresh.lease);
    let settled = match outcome {
        Outcome::Listed { started_at, fetched_at, collected_at, content_seq, sighted_seq, touched_seq } => tx.execute(
            "UPDATE refreshes SET lease = NULL, cleared = lease_marks, attempts = 0, last_error_code = NULL, \
             last_error_at = NULL, blocked_reason = NULL, last_fetched_at = $4, \
             last_collected_at = coalesce($5, last_collected_at), content_seq = coalesce($6, content_seq), touched_seq = $7, \
             sighted_seq = coalesce($9, sighted_seq), \
             due_at = CASE WHEN marks > lease_marks THEN coalesce(due_at, $8) ELSE NULL END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, fetched_at, collected_at, content_seq, touched_seq, started_at + SETTLE, sighted_seq],
        )?,
        Outcome::Postponed { code, at, until } => tx.execute(
            "UPDATE refreshes SET lease = NULL, attempts = attempts + 1, last_error_code = $4, last_error_at = $5, due_at = $6 \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, code, at, until],
        )?,
        Outcome::Blocked { code, at } => tx.execute(
            "UPDATE refreshes SET lease = NULL, attempts = 0, last_error_code = $4, last_error_at = $5, \
             blocked_reason = CASE WHEN marks > lease_marks THEN NULL ELSE $4 END, \
             due_at = CASE WHEN marks > lease_marks THEN coalesce(due_at, $5) ELSE NULL END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, code, at],
        )?,
    };
    Ok(settled == 1)
}

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

/// Counts what waits.
///
/// # Errors
/// [`Error::Database`].
pub fn backlog(tx: &Tx<'_>) -> Result<Backlog, Error> {
    let counted = tx.one(
        "SELECT count(CASE WHEN due_at IS NOT NULL OR lease IS NOT NULL THEN 1 END), \
         count(CASE WHEN due_at IS NOT NULL AND attempts > 0 THEN 1 END), count(blocked_reason) FROM refreshes",
        args![],
        |row| Ok([row.int(0)?, row.int(1)?, row.int(2)?].map(|count| u64::try_from(count).unwrap_or(0))),
    )?;
    let [pending, retrying, blocked] = counted.unwrap_or_default();
    Ok(Backlog { pending, retrying, blocked })
}

/// The queue as its users hold it. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    store: Store,
    clock: Clock,
    news: watch::Sender<()>,
}

impl Queue {
    /// The queue in `store`. Leases of a process that is gone are void: this process owns the state.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn open(store: Store, clock: Clock) -> Result<Self, Error> {
        let now = clock.now();
        store
            .write(move |tx| {
                tx.execute(
                    "UPDATE refreshes SET lease = NULL, due_at = coalesce(due_at, $1) WHERE lease IS NOT NULL",
                    args![now],
                )
            })
            .await?;
        Ok(Self { store, clock, news: watch::Sender::new(()) })
    }

    /// Tells everyone who listens that marks were committed.
    pub fn announce(&self) {
        self.news.send_replace(());
    }

    /// The announcements from now on, any number of them at once as one.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Leases up to `limit` due refreshes, the most urgent and longest waiting first.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::NotDurable`].
    pub async fn claim(&self, limit: usize) -> Result<Vec<Refresh>, Error> {
        let now = self.clock.now();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.store
            .write(move |tx| {
                let lease = next_number(tx, "lease")?;
                tx.all(
                    "UPDATE refreshes SET lease = $1, lease_marks = marks, last_started_at = $2, due_at = NULL \
                     WHERE (link_id, resource) IN (SELECT link_id, resource FROM refreshes \
                     WHERE due_at <= $2 AND lease IS NULL ORDER BY priority, due_at LIMIT $3) \
                     RETURNING link_id, resource, priority, attempts, webhook_count, lease",
                    args![lease, now, limit],
                    read_refresh,
                )
            })
            .await
    }

    /// When the next refresh falls due that is not due yet or not leased; `None` when nothing waits.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        let next = self
            .store
            .read(|tx| {
                tx.one("SELECT min(due_at) FROM refreshes WHERE due_at IS NOT NULL AND lease IS NULL", args![], |row| {
                    row.opt_at(0)
                })
            })
            .await?;
        Ok(next.flatten())
    }
}

fn read_refresh(row: &Row<'_>) -> Result<Refresh, Error> {
    Ok(Refresh {
        link_id: row.link_id(0)?,
        resource: Resource::by_name(row.str(1)?).ok_or(Error::Unreadable("a resource's name"))?,
        is_urgent: row.int(2)? == Trigger::Webhook.priority(),
        attempts: u32::try_from(row.int(3)?).unwrap_or(u32::MAX),
        webhook_count: row.opt_int(4)?,
        lease: row.int(5)?,
    })
}

/// The next value of the counter `name` in `meta`, from 1.
///
/// # Errors
/// [`Error::Database`].
pub fn next_number(tx: &Tx<'_>, name: &str) -> Result<i64, Error> {
    let next = tx.one(
        "INSERT INTO meta (name, value) VALUES ($1, '1') \
         ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING CAST(value AS BIGINT)",
        args![name],
        |row| row.int(0),
    )?;
    next.ok_or(Error::Unreadable("a counter"))
}
