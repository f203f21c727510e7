//! Durable, coalescing, leased refreshes: which link and resource to look at again, and when.
//!
//! A mark says where to look, never what was seen: any number of marks for one `(link, resource)` before its fetch begins
//! cost one fetch, and a mark that comes later costs another. Nothing is told apart by an id of Belvo's, because none of
//! them is unique.
//!
//! *Takes* marks inside the caller's own transaction, so that a webhook and its mark are durable together. *Gives* due
//! [`Refresh`]es to the worker, each to one. *Promises* that only the marks that a fetch saw when it began are cleared by
//! it. *Not here*: who marks, and what a refresh does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;

use crate::belvo::{Class, Code};
use crate::chronicle;
use crate::clock::{Clock, FARTHEST_AHEAD, Timestamp};
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::store::{Error, Store, Tx, args};
use crate::tombstones;

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
    /// The priority of what it wants, unless the link is one of which Belvo never told.
    pub fn priority(self) -> Priority {
        match self {
            Self::Webhook => Priority::Webhook,
            Self::Operator => Priority::Operator,
            Self::Schedule => Priority::Schedule,
            Self::Confirm => Priority::Confirm,
        }
    }
}

/// How urgent a refresh is, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A webhook wants it.
    Webhook,
    /// A person wants it.
    Operator,
    /// A job wants it.
    Schedule,
    /// It is a second look at what was missing from a list.
    Confirm,
    /// It is news about a link of which Belvo never told: whoever knows a webhook's secret can make such links up, so they wait
    /// in a lane of their own.
    Unknown,
}

impl Priority {
    /// Every priority, in order of their numbers.
    pub const ALL: [Self; 5] = [Self::Webhook, Self::Operator, Self::Schedule, Self::Confirm, Self::Unknown];

    /// The number on record.
    pub const fn number(self) -> i64 {
        self as i64
    }

    /// The priority of a number on record.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub fn of(number: i64) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|priority| priority.number() == number).ok_or(Error::Unreadable("a priority"))
    }
}

/// The code of a list that lacked what a webhook had counted.
pub const INCOMPLETE: &str = "incomplete";

/// One unit of work: a link's resource that somebody wants to be looked at again.
#[derive(Debug, Clone)]
pub struct Refresh {
    /// The link.
    pub link_id: LinkId,
    /// What to list.
    pub resource: &'static Resource,
    /// Failed tries before this one.
    pub attempts: u32,
    /// Of these, the last in a row that lacked what a webhook had counted.
    pub incomplete: u32,
    /// What the latest webhook counted, when one did.
    pub webhook_count: Option<i64>,
    /// Records in the last complete list, when there was one.
    pub last_count: Option<i64>,
    lease: i64,
    /// Of those who wanted it when it was claimed.
    priority: Priority,
    /// Since when it was due.
    due_at: Timestamp,
}

impl Refresh {
    /// What its calls are for the request budget: what a webhook wants may use the reserve.
    pub fn class(&self) -> Class {
        match self.priority {
            Priority::Unknown => Class::Unknown,
            Priority::Webhook => Class::Urgent,
            Priority::Operator | Priority::Schedule | Priority::Confirm => Class::Ordinary,
        }
    }

    /// Whether a webhook is among those who want it.
    pub fn is_urgent(&self) -> bool {
        self.class() != Class::Ordinary
    }
}

/// The lanes in which refreshes wait for the request budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What webhooks want.
    Urgent,
    /// Everything else.
    Ordinary,
    /// What webhooks want of links of which Belvo never told.
    Unknown,
}

impl Lane {
    /// The priorities that this lane serves, in its usual order.
    fn priorities(self) -> &'static [Priority] {
        match self {
            Self::Urgent => &[Priority::Webhook],
            Self::Ordinary => &[Priority::Operator, Priority::Schedule, Priority::Confirm],
            Self::Unknown => &[Priority::Unknown],
        }
    }
}

/// How many refreshes of the resource, at least one, fit a request that the link's goes with.
pub type Fit = Box<dyn Fn(&LinkId, &'static Resource) -> usize + Send>;

/// What a claim may take.
pub struct Wish {
    /// Whose turn it is.
    pub lane: Lane,
    /// Whether the last in the lane's order are served first this time, so that nobody waits for ever.
    pub is_reversed: bool,
    /// How many requests may leave.
    pub requests: usize,
    /// How many refreshes of a resource, at least one, fit the request that this one goes with.
    pub fit: Fit,
}

/// What a claim took.
#[derive(Debug, Default)]
pub struct Claimed {
    /// For each request its refreshes, all of one resource.
    pub requests: Vec<Vec<Refresh>>,
    /// Due refreshes that were seen, of each resource, these among them.
    pub due: HashMap<&'static str, usize>,
}

/// Marks `(link, resource)` as worth a look, not before `not_before`, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn mark(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    trigger: Trigger,
    not_before: Timestamp,
) -> Result<(), Error> {
    // A scheduled refresh of an unconfirmed link gets no higher priority than its webhooks. A second look follows a list.
    let is_usual = trigger != Trigger::Schedule || news_priority(tx, link_id)? != Priority::Unknown;
    let priority = if is_usual { trigger.priority() } else { Priority::Unknown };
    let Some(standing) = Standing::read(tx, link_id, resource)? else {
        // What was erased is not looked at again, whoever asks.
        if tombstones::is_erased(tx, link_id)? {
            return Ok(());
        }
        tx.execute(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority) VALUES ($1, $2, 1, $3, $4)",
            args![link_id, resource.name, not_before, priority.number()],
        )?;
        return Ok(());
    };
    let (due, priority) = standing.after(trigger, priority, not_before);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority.number()],
    )?;
    Ok(())
}

/// Like [`mark`], for a webhook about a link that is not erased, which counted `count` records. One that counted nothing
/// voids the count of those before it, unless their fetch is still to begin. News of a link of which Belvo never told wait
/// in a lane of their own until it does: see [`confirm`].
///
/// # Errors
/// [`Error::Database`].
pub fn mark_news(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    count: Option<i64>,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(standing) = Standing::read(tx, link_id, resource)? else {
        tx.execute(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority, webhook_count) VALUES ($1, $2, 1, $3, $4, $5)",
            args![link_id, resource.name, now, news_priority(tx, link_id)?.number(), count],
        )?;
        return Ok(());
    };
    // What is urgent already stays so, whoever the link is.
    let is_urgent = standing.due.is_some() && standing.priority == Priority::Webhook;
    let priority = if is_urgent { standing.priority } else { news_priority(tx, link_id)? };
    let (due, priority) = standing.after(Trigger::Webhook, priority, now);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL, \
         webhook_count = CASE WHEN $5 IS NOT NULL OR marks = cleared THEN $5 ELSE webhook_count END \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority.number(), count],
    )?;
    Ok(())
}

/// The priority of news about the link. A link that a widget session of ours waits for is as good as one that Belvo told of;
/// one at a time, because whoever forges news can name the session's user, too.
fn news_priority(tx: &Tx<'_>, link_id: &LinkId) -> Result<Priority, Error> {
    let is_known = tx.one(
        "SELECT l.looked_up_at IS NOT NULL OR (\
         EXISTS (SELECT 1 FROM widget_sessions s WHERE s.external_id = l.external_id AND s.due_at IS NOT NULL AND s.link_id IS NULL) \
         AND NOT EXISTS (SELECT 1 FROM links o WHERE o.external_id = l.external_id AND o.looked_up_at IS NULL AND o.link_id <> l.link_id)) \
         FROM links l WHERE l.link_id = $1",
        args![link_id],
        |row| Ok(row.int(0)? == 1),
    )?;
    Ok(if is_known == Some(false) { Priority::Unknown } else { Priority::Webhook })
}

/// Belvo told of the link, inside the caller's transaction: news about it are as urgent as any.
///
/// # Errors
/// [`Error::Database`].
pub fn confirm(tx: &Tx<'_>, link_id: &LinkId) -> Result<(), Error> {
    tx.execute(
        "UPDATE refreshes SET priority = $2 WHERE link_id = $1 AND priority = $3",
        args![link_id, Priority::Webhook.number(), Priority::Unknown.number()],
    )
    .map(drop)
}

/// Refreshes of `resource` that failed with `code` are due now, inside the caller's transaction: another one of them came
/// through. Gives their number.
///
/// # Errors
/// [`Error::Database`].
pub fn try_again(tx: &Tx<'_>, resource: &Resource, code: Code, now: Timestamp) -> Result<usize, Error> {
    tx.execute(
        "UPDATE refreshes SET due_at = $3 WHERE resource = $1 AND last_error_code = $2 AND attempts > 0 AND due_at > $3 \
         AND lease IS NULL",
        args![resource.name, code.name(), now],
    )
}

/// What is wanted of a link and resource already.
struct Standing {
    due: Option<Timestamp>,
    priority: Priority,
    attempts: i64,
    last_started: Option<Timestamp>,
    /// What it failed with last.
    failure: Option<Code>,
}

impl Standing {
    fn read(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Option<Self>, Error> {
        tx.one(
            "SELECT due_at, priority, attempts, last_started_at, last_error_code FROM refreshes \
             WHERE link_id = $1 AND resource = $2",
            args![link_id, resource.name],
            |row| {
                Ok(Self {
                    due: row.opt_at(0)?,
                    priority: Priority::of(row.int(1)?)?,
                    attempts: row.int(2)?,
                    last_started: row.opt_at(3)?,
                    failure: row.opt_text(4)?.and_then(|code| Code::by_name(&code)),
                })
            },
        )
    }

    /// When it is due, and with which priority, once it is wanted again by `trigger` with `priority`.
    fn after(&self, trigger: Trigger, priority: Priority, not_before: Timestamp) -> (Timestamp, Priority) {
        let priority = if self.due.is_some() { self.priority.min(priority) } else { priority };
        let settled = match (trigger, self.last_started) {
            // A fetch that began in the future began by a clock that was set back since.
            (Trigger::Webhook, Some(started)) => not_before.max(started.min(not_before) + SETTLE),
            _ => not_before,
        };
        // What failed may be mended: whoever says so is believed at once. News says so only of what Belvo refused, and a job
        // nothing.
        let is_mended = match trigger {
            Trigger::Operator => !matches!(self.failure, Some(Code::RateLimited | Code::ApiBlocked)),
            Trigger::Webhook => self.failure.is_some_and(|code| code.is_refused() || code == Code::ApiAuth),
            Trigger::Schedule | Trigger::Confirm => false,
        };
        match self.due {
            // Belvo asked for patience, which nobody shortens.
            Some(due) if self.attempts > 0 && !is_mended => (due, priority),
            Some(due) => (due.min(settled), priority),
            None => (settled, priority),
        }
    }
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
    /// Nothing was asked: it is due as it was before.
    Released,
    /// Wait for a person or for news from Belvo.
    Blocked {
        /// Stable code of the failure.
        code: &'static str,
        /// When it failed.
        at: Timestamp,
    },
}

/// Ends the lease of `refresh`, inside the transaction that holds what came of it. False when the lease was lost: then
/// the caller must keep nothing. One that came to nothing waits again for whoever wanted it before, and is as urgent, whoever
/// else has wanted it meanwhile.
///
/// # Errors
/// [`Error::Database`].
pub fn settle(tx: &Tx<'_>, refresh: &Refresh, outcome: Outcome) -> Result<bool, Error> {
    let (link_id, resource, lease) = (&refresh.link_id, refresh.resource.name, refresh.lease);
    let settled = match outcome {
        Outcome::Listed { started_at, fetched_at, collected_at, content_seq, sighted_seq, touched_seq } => tx.execute(
            "UPDATE refreshes SET lease = NULL, cleared = lease_marks, attempts = 0, last_error_code = NULL, \
             last_error_at = NULL, blocked_reason = NULL, last_fetched_at = $4, \
             last_collected_at = CASE WHEN $5 < last_collected_at AND last_collected_at <= $10 THEN last_collected_at \
             ELSE coalesce($5, last_collected_at) END, \
             content_seq = coalesce($6, content_seq), touched_seq = $7, \
             sighted_seq = coalesce($9, sighted_seq), \
             due_at = CASE WHEN marks > lease_marks THEN coalesce(due_at, $8) ELSE NULL END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![
                link_id,
                resource,
                lease,
                fetched_at,
                collected_at,
                content_seq,
                touched_seq,
                started_at + SETTLE,
                sighted_seq,
                // It was kept when anything Belvo said was believed.
                fetched_at + FARTHEST_AHEAD
            ],
        )?,
        Outcome::Postponed { code, at, until } => tx.execute(
            // An answer came, if not a whole one: failures before it are over.
            "UPDATE refreshes SET lease = NULL, attempts = CASE WHEN $4 = $8 AND last_error_code IS DISTINCT FROM $8 THEN 1 \
             ELSE attempts + 1 END, last_error_code = $4, last_error_at = $5, due_at = $6, \
             priority = CASE WHEN priority < $7 THEN priority ELSE $7 END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, code, at, until, refresh.priority.number(), INCOMPLETE],
        )?,
        Outcome::Released => tx.execute(
            "UPDATE refreshes SET lease = NULL, due_at = CASE WHEN due_at < $4 THEN due_at ELSE $4 END, \
             priority = CASE WHEN priority < $5 THEN priority ELSE $5 END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, refresh.due_at, refresh.priority.number()],
        )?,
        Outcome::Blocked { code, at } => tx.execute(
            "UPDATE refreshes SET lease = NULL, attempts = 0, last_error_code = $4, last_error_at = $5, \
             blocked_reason = CASE WHEN marks > lease_marks THEN NULL ELSE $4 END, \
             due_at = CASE WHEN marks > lease_marks THEN coalesce(due_at, $5) ELSE NULL END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, code, at],
        )?,
    };
    if let (1, Outcome::Postponed { code, at, .. } | Outcome::Blocked { code, at }) = (settled, outcome) {
        chronicle::note_failure(tx, code, at)?;
    }
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

/// Since when the refresh could have begun that waits longest; `None` when none waits.
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

    /// Whether nothing is about to happen: it neither runs nor is wanted. A second look that a list has booked for later,
    /// because it lacked a row, is not what anybody asked for.
    pub fn is_idle(&self, now: Timestamp) -> bool {
        let is_booked = |due| self.priority == Some(Priority::Confirm) && due > now;
        !self.is_leased && self.due_at.is_none_or(is_booked)
    }
}

/// Lets everything be due earlier by as much as the clock was set back: it would wait for so much longer. A second look waits
/// all the same, because it counts from lists that go by the clock from before.
///
/// # Errors
/// [`Error::Database`].
pub fn go_back(tx: &Tx<'_>, by: Duration) -> Result<(), Error> {
    let refreshes = "UPDATE refreshes SET due_at = due_at - $1 WHERE due_at IS NOT NULL AND priority <> $2";
    tx.execute(refreshes, args![by, Priority::Confirm.number()])?;
    for (table, due) in [
        ("links", "lookup_due_at"),
        ("recollects", "free_at"),
        ("recollects", "due_at"),
        ("widget_sessions", "due_at"),
        ("deletions", "due_at"),
    ] {
        tx.execute(&format!("UPDATE {table} SET {due} = {due} - $1 WHERE {due} IS NOT NULL"), args![by])?;
    }
    Ok(())
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

/// How many refreshes wait because Belvo refuses what they ask for. What it does not know may come yet, and is about a link.
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

/// Codes of ours as SQL takes them.
fn listed(codes: impl Iterator<Item = Code>) -> String {
    codes.map(|code| format!("'{}'", code.name())).collect::<Vec<_>>().join(", ")
}

/// The queue as its users hold it. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    store: Store,
    clock: Clock,
    news: watch::Sender<()>,
}

impl Queue {
    /// The queue in `store`. Leases of a process that is gone are void: this process owns the state. What an earlier version
    /// blocked until an operator came is tried again. What stays due of paused
    /// links is said by [`links::hold_all`](crate::links::hold_all).
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
                )?;
                let wake = format!(
                    "UPDATE refreshes SET blocked_reason = NULL, due_at = coalesce(due_at, $1) WHERE blocked_reason IN ({}) \
                     AND NOT EXISTS \
                     (SELECT 1 FROM links l WHERE l.link_id = refreshes.link_id AND l.paused_reason IS NOT NULL)",
                    listed(Code::refused())
                );
                tx.execute(&wake, args![now])
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

    /// Leases due refreshes: the most urgent and longest waiting of the lane for each request, and with it those of the
    /// same resource, of any lane, that fit the request.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::NotDurable`].
    pub async fn claim(&self, wish: Wish) -> Result<Claimed, Error> {
        let now = self.clock.now();
        self.store
            .write(move |tx| {
                let (taken, due) = choose(tx, &wish, now)?;
                if taken.is_empty() {
                    return Ok(Claimed { requests: Vec::new(), due });
                }
                let lease = tx.next_number("lease")?;
                let requests = taken.into_iter().map(|refreshes| {
                    refreshes.into_iter().filter_map(|waiting| take(tx, &waiting, lease, now).transpose()).collect()
                });
                Ok(Claimed { requests: requests.collect::<Result<_, Error>>()?, due })
            })
            .await
    }

    /// When the lane's next refresh falls due that is not leased, also in the past; `None` when nothing waits.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn next_due(&self, lane: Lane) -> Result<Option<Timestamp>, Error> {
        self.store
            .read(move |tx| {
                let mut next = None;
                for priority in lane.priorities() {
                    let due = tx.one(
                        "SELECT min(due_at) FROM refreshes WHERE priority = $1 AND due_at IS NOT NULL AND lease IS NULL",
                        args![priority.number()],
                        |row| row.opt_at(0),
                    )?;
                    next = [next, due.flatten()].into_iter().flatten().min();
                }
                Ok(next)
            })
            .await
    }
}

/// Due refreshes of each priority that a claim looks at; more than fit its requests, because some are of another
/// resource.
const LOOK_AHEAD: usize = 200;

/// A due refresh, before it is leased.
struct Waiting {
    link_id: LinkId,
    resource: &'static Resource,
    due_at: Timestamp,
}

type Chosen = (Vec<Vec<Waiting>>, HashMap<&'static str, usize>);

/// The refreshes for each request of `wish`, and how many of each resource are due.
fn choose(tx: &Tx<'_>, wish: &Wish, now: Timestamp) -> Result<Chosen, Error> {
    let limit = LOOK_AHEAD.max(wish.requests * 2);
    // A line for each priority.
    let mut waiting: [VecDeque<Waiting>; Priority::ALL.len()] = Default::default();
    let mut due = HashMap::new();
    for (priority, line) in Priority::ALL.into_iter().zip(&mut waiting) {
        *line = tx
            .all(
                "SELECT link_id, resource, due_at FROM refreshes WHERE priority = $1 AND due_at <= $2 AND lease IS NULL \
                 ORDER BY due_at LIMIT $3",
                args![priority.number(), now, limit],
                |row| Ok(Waiting { link_id: row.link_id(0)?, resource: read_resource(row.str(1)?)?, due_at: row.at(2)? }),
            )?
            .into();
        for refresh in line.iter() {
            *due.entry(refresh.resource.name).or_default() += 1;
        }
    }
    let mut order: Vec<usize> = wish.lane.priorities().iter().map(|priority| *priority as usize).collect();
    if wish.is_reversed {
        order.reverse();
    }
    let mut requests = Vec::new();
    while requests.len() < wish.requests {
        let Some(first) = order.iter().find_map(|priority| waiting[*priority].pop_front()) else { break };
        let fit = (wish.fit)(&first.link_id, first.resource);
        let mut request = vec![first];
        // A link that may be made up goes with its like only: whatever it does to an answer, it does to those.
        let goes_along = |priority: Priority| (priority == Priority::Unknown) == (wish.lane == Lane::Unknown);
        for (_, line) in Priority::ALL.into_iter().zip(&mut waiting).filter(|(priority, _)| goes_along(*priority)) {
            let mut others = VecDeque::new();
            while request.len() < fit
                && let Some(next) = line.pop_front()
            {
                if next.resource == request[0].resource && (wish.fit)(&next.link_id, next.resource) > 1 {
                    request.push(next);
                } else {
                    others.push_back(next);
                }
            }
            others.append(line);
            *line = others;
        }
        requests.push(request);
    }
    Ok((requests, due))
}

fn take(tx: &Tx<'_>, waiting: &Waiting, lease: i64, now: Timestamp) -> Result<Option<Refresh>, Error> {
    let Waiting { link_id, resource, due_at } = waiting;
    tx.one(
        "UPDATE refreshes SET lease = $3, lease_marks = marks, last_started_at = $4, due_at = NULL \
         WHERE link_id = $1 AND resource = $2 RETURNING priority, attempts, webhook_count, \
         CASE WHEN last_error_code = $5 THEN attempts ELSE 0 END, (SELECT s.item_count FROM link_snapshots s WHERE s.link_id = refreshes.link_id AND s.resource = refreshes.resource \
         ORDER BY s.fetched_at DESC LIMIT 1)",
        args![link_id, resource.name, lease, now, INCOMPLETE],
        |row| {
            let count = |column| row.int(column).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
            Ok(Refresh {
                link_id: link_id.clone(),
                resource,
                attempts: count(1)?,
                incomplete: count(3)?,
                webhook_count: row.opt_int(2)?,
                last_count: row.opt_int(4)?,
                lease,
                priority: Priority::of(row.int(0)?)?,
                due_at: *due_at,
            })
        },
    )
}

fn read_resource(name: &str) -> Result<&'static Resource, Error> {
    Resource::by_name(name).ok_or(Error::Unreadable("a resource's name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links;
    use crate::resources::owners;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    struct Place {
        store: Store,
        queue: Queue,
        _folder: tempfile::TempDir,
    }

    impl Place {
        /// A state with one link, of which Belvo told.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let add = "INSERT INTO links (link_id, first_seen_at, looked_up_at, changed_seq) VALUES ($1, 0, 0, 0)";
            store.write(move |tx| tx.execute(add, args![LINK])).await.unwrap();
            let queue = Queue::open(store.clone(), Clock::from_fn(|| at(100))).await.unwrap();
            Self { store, queue, _folder: folder }
        }

        async fn write<T: Send + 'static>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static) -> T {
            let mut work = Some(work);
            self.store.write(move |tx| work.take().unwrap()(tx)).await.unwrap()
        }

        /// The requests that a claim of `lane` gives, as ids of links, with what was claimed.
        async fn claim(&self, lane: Lane) -> Vec<Vec<Refresh>> {
            let wish = Wish { lane, is_reversed: false, requests: 9, fit: Box::new(|_, _| 50) };
            self.queue.claim(wish).await.unwrap().requests
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn link() -> LinkId {
        LINK.parse().unwrap()
    }

    #[test]
    fn priorities_are_on_record_by_their_number_and_another_number_is_none() {
        assert_eq!(Priority::ALL.map(Priority::number), [0, 1, 2, 3, 4]);
        for priority in Priority::ALL {
            assert_eq!(Priority::of(priority.number()).unwrap(), priority);
        }
        assert!(Priority::of(-1).is_err() && Priority::of(5).is_err());
    }

    #[tokio::test]
    async fn what_is_due_goes_back_with_the_clock_and_a_second_look_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |minutes: i64| Timestamp::from_micros(minutes * 60_000_000);
        let other = "00000000-0000-4000-8000-000000000002";
        let due = move |tx: &Tx<'_>| {
            for (link, trigger) in [(LINK, Trigger::Webhook), (other, Trigger::Confirm)] {
                mark(tx, &link.parse().unwrap(), &owners::RESOURCE, trigger, at(500))?;
            }
            let others = [
                "INSERT INTO links (link_id, first_seen_at, lookup_due_at, changed_seq) VALUES ($1, 0, $2, 0)",
                "INSERT INTO recollects (link_id, resources, asked_at, free_at, change, due_at) VALUES ($1, '', 0, $2, 0, $2)",
                "INSERT INTO widget_sessions (external_id, asked_at, due_at) VALUES ($1, 0, $2)",
                "INSERT INTO deletions (link_id, asked_at, due_at) VALUES ($1, 0, $2)",
            ];
            others.iter().try_for_each(|sql| tx.execute(sql, args![LINK, at(500)]).map(drop))?;
            go_back(tx, Duration::from_hours(2))?;
            let others = "SELECT lookup_due_at FROM links UNION ALL SELECT free_at FROM recollects \
                UNION ALL SELECT due_at FROM recollects UNION ALL SELECT due_at FROM widget_sessions \
                UNION ALL SELECT due_at FROM deletions";
            let refreshes = "SELECT due_at FROM refreshes ORDER BY priority";
            Ok((tx.all(refreshes, args![], |row| row.at(0))?, tx.all(others, args![], |row| row.at(0))?))
        };
        assert_eq!(store.write(due).await.unwrap(), (vec![at(380), at(500)], vec![at(380); 5]));
    }

    #[tokio::test]
    async fn what_a_webhook_wants_stays_urgent_whoever_else_wants_it_while_it_runs() {
        for outcome in [Outcome::Postponed { code: "api_down", at: at(50), until: at(60) }, Outcome::Released] {
            let place = Place::new().await;
            place.write(|tx| mark_news(tx, &link(), &owners::RESOURCE, Some(1), at(1))).await;
            let refresh = place.claim(Lane::Urgent).await.remove(0).remove(0);
            place.write(|tx| mark(tx, &link(), &owners::RESOURCE, Trigger::Schedule, at(2))).await;
            assert!(place.write(move |tx| settle(tx, &refresh, outcome)).await);
            let again = place.claim(Lane::Urgent).await;
            assert!(again[0][0].is_urgent(), "{outcome:?}");
        }
        // Once it has been served, whoever else wanted it meanwhile is as urgent as that is.
        let place = Place::new().await;
        place.write(|tx| mark_news(tx, &link(), &owners::RESOURCE, Some(1), at(1))).await;
        let refresh = place.claim(Lane::Urgent).await.remove(0).remove(0);
        place.write(|tx| mark(tx, &link(), &owners::RESOURCE, Trigger::Schedule, at(2))).await;
        let listed = Outcome::Listed {
            started_at: at(40),
            fetched_at: at(50),
            collected_at: None,
            content_seq: None,
            sighted_seq: None,
            touched_seq: 1,
        };
        place.write(move |tx| settle(tx, &refresh, listed)).await;
        assert!(place.claim(Lane::Urgent).await.is_empty());
        assert_eq!(place.claim(Lane::Ordinary).await.len(), 1);
    }

    #[tokio::test]
    async fn when_belvo_collected_last_never_goes_back() {
        let place = Place::new().await;
        // From when anything Belvo said was believed.
        let decades_ahead = at(50) + FARTHEST_AHEAD + Duration::from_secs(1);
        place.write(|tx| mark(tx, &link(), &owners::RESOURCE, Trigger::Operator, at(1))).await;
        let slip = "UPDATE refreshes SET last_collected_at = $1";
        place.write(move |tx| tx.execute(slip, args![decades_ahead])).await;
        // A list without records has no such time, and an older answer an earlier one.
        for (collected, newest) in [(Some(20), Some(20)), (Some(10), Some(20)), (None, Some(20)), (Some(30), Some(30))]
        {
            place.write(|tx| mark(tx, &link(), &owners::RESOURCE, Trigger::Operator, at(1))).await;
            let refresh = place.claim(Lane::Ordinary).await.remove(0).remove(0);
            let listed = Outcome::Listed {
                started_at: at(40),
                fetched_at: at(50),
                collected_at: collected.map(at),
                content_seq: None,
                sighted_seq: None,
                touched_seq: 1,
            };
            assert!(place.write(move |tx| settle(tx, &refresh, listed)).await);
            let held =
                place.write(|tx| tx.one("SELECT last_collected_at FROM refreshes", args![], |row| row.opt_at(0))).await;
            assert_eq!(held.flatten(), newest.map(at), "{collected:?}");
        }
    }

    #[tokio::test]
    async fn news_of_a_link_of_which_belvo_never_told_wait_apart_until_it_does() {
        let place = Place::new().await;
        let unknown = || -> LinkId { "00000000-0000-4000-8000-000000000001".parse().unwrap() };
        let waited_for = || -> LinkId { "00000000-0000-4000-8000-000000000002".parse().unwrap() };
        let forged = || -> LinkId { "00000000-0000-4000-8000-000000000003".parse().unwrap() };
        place
            .write(move |tx| {
                // One session waits for its link, and one has waited.
                let sessions = "INSERT INTO widget_sessions (external_id, asked_at, due_at) VALUES ('user-1', 0, 9), ('user-2', 0, NULL)";
                tx.execute(sessions, args![])?;
                for (link, user) in
                    [(link(), "user-0"), (unknown(), "user-2"), (waited_for(), "user-1"), (forged(), "user-1")]
                {
                    links::note_webhook(tx, &link, Some(user), at(1))?;
                    mark_news(tx, &link, &owners::RESOURCE, None, at(1))?;
                }
                // A job makes it no more urgent.
                mark(tx, &unknown(), &owners::RESOURCE, Trigger::Schedule, at(1))
            })
            .await;
        let links = |requests: &[Vec<Refresh>]| -> Vec<LinkId> {
            let mut links: Vec<LinkId> = requests.iter().flatten().map(|refresh| refresh.link_id.clone()).collect();
            links.sort();
            links
        };
        assert_eq!(links(&place.claim(Lane::Urgent).await), [waited_for(), link()], "though more would fit");
        assert!(place.claim(Lane::Ordinary).await.is_empty());
        let apart = place.claim(Lane::Unknown).await;
        assert_eq!(links(&apart), [unknown(), forged()]);
        let refresh = apart.into_iter().flatten().find(|refresh| refresh.link_id == unknown()).unwrap();
        assert_eq!((refresh.class(), refresh.is_urgent()), (Class::Unknown, true));
        place.write(move |tx| settle(tx, &refresh, Outcome::Released)).await;
        place.write(move |tx| confirm(tx, &unknown())).await;
        assert!(place.claim(Lane::Unknown).await.is_empty());
        assert_eq!(place.claim(Lane::Urgent).await[0][0].class(), Class::Urgent);
    }

    #[tokio::test]
    async fn what_was_refused_is_due_once_another_came_through_and_so_is_what_was_blocked_for_ever() {
        let place = Place::new().await;
        place.write(|tx| mark_news(tx, &link(), &owners::RESOURCE, None, at(1))).await;
        let refresh = place.claim(Lane::Urgent).await.remove(0).remove(0);
        let refused = Outcome::Postponed { code: "api_forbidden", at: at(50), until: at(9_000) };
        place.write(move |tx| settle(tx, &refresh, refused)).await;
        assert_eq!(place.write(|tx| try_again(tx, &owners::RESOURCE, Code::BadRequest, at(100))).await, 0);
        assert!(place.claim(Lane::Urgent).await.is_empty());
        assert_eq!(place.write(|tx| try_again(tx, &owners::RESOURCE, Code::ApiForbidden, at(100))).await, 1);
        let refresh = place.claim(Lane::Urgent).await.remove(0).remove(0);
        let blocked = Outcome::Blocked { code: "api_forbidden", at: at(50) };
        place.write(move |tx| settle(tx, &refresh, blocked)).await;
        Queue::open(place.store.clone(), Clock::from_fn(|| at(100))).await.unwrap();
        assert_eq!(place.claim(Lane::Urgent).await.len(), 1);
    }

    #[tokio::test]
    async fn what_was_under_way_is_not_due_after_a_restart_for_a_link_that_was_paused_meanwhile() {
        let place = Place::new().await;
        place
            .write(|tx| {
                links::note_wish(tx, &link(), at(1))?;
                mark(tx, &link(), &owners::RESOURCE, Trigger::Operator, at(1))
            })
            .await;
        assert_eq!(place.claim(Lane::Ordinary).await.len(), 1);
        place.write(|tx| links::pause_by_operator(tx, &link(), at(2)).map(drop)).await;
        Queue::open(place.store.clone(), Clock::from_fn(|| at(100))).await.unwrap();
        place.write(links::hold_all).await;
        assert!(place.claim(Lane::Ordinary).await.is_empty());
    }

    #[tokio::test]
    async fn whoever_says_that_something_is_mended_is_believed_at_once_but_not_when_belvo_asked_for_patience() {
        for (code, trigger, is_due) in [
            ("api_forbidden", Trigger::Operator, true),
            ("not_found", Trigger::Webhook, true),
            ("api_auth", Trigger::Operator, true),
            ("api_down", Trigger::Operator, true),
            ("api_down", Trigger::Webhook, false),
            ("api_forbidden", Trigger::Schedule, false),
            ("rate_limited", Trigger::Operator, false),
        ] {
            let place = Place::new().await;
            place.write(|tx| mark_news(tx, &link(), &owners::RESOURCE, None, at(1))).await;
            let refresh = place.claim(Lane::Urgent).await.remove(0).remove(0);
            let failed = Outcome::Postponed { code, at: at(50), until: at(9_000) };
            place.write(move |tx| settle(tx, &refresh, failed)).await;
            // Five seconds after it was last asked for.
            place.write(|tx| tx.execute("UPDATE refreshes SET last_started_at = 0", args![]).map(drop)).await;
            place.write(move |tx| mark(tx, &link(), &owners::RESOURCE, trigger, at(100))).await;
            let due = place.write(|tx| tx.one("SELECT due_at FROM refreshes", args![], |row| row.at(0))).await;
            assert_eq!(due.is_some_and(|due| due < at(9_000)), is_due, "{code} {trigger:?}");
        }
    }
}
