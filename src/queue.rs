//! Durable, coalescing, leased refreshes: which link and resource to look at again, and when.
//!
//! A mark says where to look, never what was seen: any number of marks for one `(link, resource)` before its fetch begins
//! cost one fetch, and a mark that comes later costs another. Nothing is told apart by an id of Belvo's, because none of
//! them is unique.
//!
//! *Takes* marks inside the caller's own transaction, so that a webhook and its mark are durable together. *Gives* due
//! [`Refresh`]es to the worker, each to one. *Promises* that only the marks that a fetch saw when it began are cleared by
//! it. *Not here*: who marks, and what a refresh does.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;

use crate::belvo::LinkId;
use crate::chronicle;
use crate::clock::{Clock, Timestamp};
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
    /// The number on record; 0 is served first.
    pub(crate) fn priority(self) -> i64 {
        match self {
            Self::Webhook => 0,
            Self::Operator => 1,
            Self::Schedule => 2,
            Self::Confirm => 3,
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
    /// Records in the last complete list, when there was one.
    pub last_count: Option<i64>,
    lease: i64,
    /// Since when it was due.
    due_at: Timestamp,
}

/// The two lines in which refreshes wait for the request budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What webhooks want.
    Urgent,
    /// Everything else.
    Ordinary,
}

impl Lane {
    /// The priorities that this lane serves, in its usual order.
    fn priorities(self) -> &'static [i64] {
        match self {
            Self::Urgent => &[0],
            Self::Ordinary => &[1, 2, 3],
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
    let Some(standing) = Standing::read(tx, link_id, resource)? else {
        // What was erased is not looked at again, whoever asks.
        if tombstones::is_erased(tx, link_id)? {
            return Ok(());
        }
        tx.execute(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority) VALUES ($1, $2, 1, $3, $4)",
            args![link_id, resource.name, not_before, trigger.priority()],
        )?;
        return Ok(());
    };
    let (due, priority) = standing.after(trigger, not_before);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority],
    )?;
    Ok(())
}

/// Like [`mark`], for a webhook about a link that is not erased, which counted `count` records. One that counted nothing
/// voids the count of those before it, unless their fetch is still to begin.
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
            args![link_id, resource.name, now, Trigger::Webhook.priority(), count],
        )?;
        return Ok(());
    };
    let (due, priority) = standing.after(Trigger::Webhook, now);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL, \
         webhook_count = CASE WHEN $5 IS NOT NULL OR marks = cleared THEN $5 ELSE webhook_count END \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority, count],
    )?;
    Ok(())
}

/// What is wanted of a link and resource already.
struct Standing {
    due: Option<Timestamp>,
    priority: i64,
    attempts: i64,
    last_started: Option<Timestamp>,
}

impl Standing {
    fn read(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Option<Self>, Error> {
        tx.one(
            "SELECT due_at, priority, attempts, last_started_at FROM refreshes WHERE link_id = $1 AND resource = $2",
            args![link_id, resource.name],
            |row| {
                Ok(Self {
                    due: row.opt_at(0)?,
                    priority: row.int(1)?,
                    attempts: row.int(2)?,
                    last_started: row.opt_at(3)?,
                })
            },
        )
    }

    /// When it is due, and with which priority, once it is wanted again.
    fn after(&self, trigger: Trigger, not_before: Timestamp) -> (Timestamp, i64) {
        let settled = match (trigger, self.last_started) {
            (Trigger::Webhook, Some(started)) => not_before.max(started + SETTLE),
            _ => not_before,
        };
        match self.due {
            // Belvo asked for patience; news do not shorten it.
            Some(due) if self.attempts > 0 => (due, self.priority.min(trigger.priority())),
            Some(due) => (due.min(settled), self.priority.min(trigger.priority())),
            None => (settled, trigger.priority()),
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
        Outcome::Released => tx.execute(
            "UPDATE refreshes SET lease = NULL, due_at = CASE WHEN due_at < $4 THEN due_at ELSE $4 END \
             WHERE link_id = $1 AND resource = $2 AND lease = $3",
            args![link_id, resource, lease, refresh.due_at],
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

/// Counts what waits. A webhook that is received and not followed up counts as what it will want.
///
/// # Errors
/// [`Error::Database`].
pub fn backlog(tx: &Tx<'_>) -> Result<Backlog, Error> {
    let counted = tx.one(
        "SELECT count(CASE WHEN due_at IS NOT NULL OR lease IS NOT NULL THEN 1 END) \
         + (SELECT count(*) FROM webhooks WHERE outcome = 'received'), \
         count(CASE WHEN due_at IS NOT NULL AND attempts > 0 THEN 1 END), count(blocked_reason) FROM refreshes",
        args![],
        |row| Ok([row.int(0)?, row.int(1)?, row.int(2)?].map(|count| u64::try_from(count).unwrap_or(0))),
    )?;
    let [pending, retrying, blocked] = counted.unwrap_or_default();
    Ok(Backlog { pending, retrying, blocked })
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
    let count = |trigger: Trigger| {
        tx.one(
            "SELECT count(*) FROM refreshes WHERE priority = $1 AND due_at <= $2 AND lease IS NULL",
            args![trigger.priority(), now],
            |row| Ok(u64::try_from(row.int(0)?).unwrap_or(0)),
        )
        .map(Option::unwrap_or_default)
    };
    Ok(Due {
        webhook: count(Trigger::Webhook)?,
        operator: count(Trigger::Operator)?,
        schedule: count(Trigger::Schedule)?,
        confirm: count(Trigger::Confirm)?,
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
    for trigger in [Trigger::Webhook, Trigger::Operator, Trigger::Schedule, Trigger::Confirm] {
        let since = tx.one(sql, args![trigger.priority()], |row| row.opt_at(0))?.flatten();
        oldest = since.filter(|since| *since <= now).into_iter().chain(oldest).min();
    }
    Ok(oldest)
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
                        args![*priority],
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
    let limit = i64::try_from(LOOK_AHEAD.max(wish.requests * 2)).unwrap_or(i64::MAX);
    let mut waiting: [VecDeque<Waiting>; 4] = Default::default();
    let mut due = HashMap::new();
    for (priority, line) in waiting.iter_mut().enumerate() {
        *line = tx
            .all(
                "SELECT link_id, resource, due_at FROM refreshes WHERE priority = $1 AND due_at <= $2 AND lease IS NULL \
                 ORDER BY due_at LIMIT $3",
                args![i64::try_from(priority).unwrap_or(i64::MAX), now, limit],
                |row| Ok(Waiting { link_id: row.link_id(0)?, resource: read_resource(row.str(1)?)?, due_at: row.at(2)? }),
            )?
            .into();
        for refresh in line.iter() {
            *due.entry(refresh.resource.name).or_default() += 1;
        }
    }
    let mut order: Vec<usize> =
        wish.lane.priorities().iter().filter_map(|priority| usize::try_from(*priority).ok()).collect();
    if wish.is_reversed {
        order.reverse();
    }
    let mut requests = Vec::new();
    while requests.len() < wish.requests {
        let Some(first) = order.iter().find_map(|priority| waiting[*priority].pop_front()) else { break };
        let fit = (wish.fit)(&first.link_id, first.resource);
        let mut request = vec![first];
        for line in &mut waiting {
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
         (SELECT s.item_count FROM link_snapshots s WHERE s.link_id = refreshes.link_id AND s.resource = refreshes.resource \
         ORDER BY s.fetched_at DESC LIMIT 1)",
        args![link_id, resource.name, lease, now],
        |row| {
            Ok(Refresh {
                link_id: link_id.clone(),
                resource,
                is_urgent: row.int(0)? == Trigger::Webhook.priority(),
                attempts: u32::try_from(row.int(1)?).unwrap_or(u32::MAX),
                webhook_count: row.opt_int(2)?,
                last_count: row.opt_int(3)?,
                lease,
                due_at: *due_at,
            })
        },
    )
}

fn read_resource(name: &str) -> Result<&'static Resource, Error> {
    Resource::by_name(name).ok_or(Error::Unreadable("a resource's name"))
}
