//! Durable, coalescing, leased refreshes: which link and resource to look at again, and when.
//!
//! A mark says where to look, never what was seen: any number of marks for one `(link, resource)` before its fetch
//! begins cost one fetch, and a mark that comes later costs another. Nothing is told apart by an id of Belvo's, because
//! none of them is unique.
//!
//! *Takes* marks inside the caller's own transaction, so that a webhook and its mark are durable together. *Gives* due
//! [`Refresh`]es to the worker, each to one. *Promises* that only the marks that a fetch saw when it began are cleared
//! by it. *Not here*: who marks, and what a refresh does; which of those that are due go together is said in `claim`,
//! and what is told of the queue in `view`.

use std::time::Duration;

use tokio::sync::watch;

use crate::belvo::{Class, Code};
use crate::chronicle;
use crate::clock::{Clock, FARTHEST_AHEAD, Timestamp};
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::store::{Error, Store, Tx, args};
use crate::tombstones;

mod claim;
mod view;

pub use claim::{ClaimRequest, Claimed, Fit};
use claim::{choose, take};
pub use view::{Backlog, Due, State, backlog, due, errors, is_busy, oldest_due, refused};

/// A webhook that comes less than this after a fetch of its link and resource began makes the next fetch wait until
/// this time has passed. So a burst of copies costs two fetches: the one that the first copy starts, and one after the
/// last.
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
    /// It is news about a link of which Belvo never told: whoever knows a webhook's secret can make such links up, so
    /// they wait in a lane of their own.
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

    /// The lane that a refresh of this priority waits in.
    fn lane(self) -> Lane {
        match self {
            Self::Webhook => Lane::Urgent,
            Self::Operator | Self::Schedule | Self::Confirm => Lane::Ordinary,
            Self::Unknown => Lane::Unknown,
        }
    }
}

/// The code of a list that came empty although a webhook had counted records of it.
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
    /// Of these, the last in a row that came empty although a webhook had counted records.
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
        self.priority.lane().class()
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
    /// What the calls for its refreshes are for the request budget.
    pub fn class(self) -> Class {
        match self {
            Self::Urgent => Class::Urgent,
            Self::Ordinary => Class::Ordinary,
            Self::Unknown => Class::Unknown,
        }
    }

    /// The priorities that this lane serves, in its usual order.
    fn priorities(self) -> &'static [Priority] {
        match self {
            Self::Urgent => &[Priority::Webhook],
            Self::Ordinary => &[Priority::Operator, Priority::Schedule, Priority::Confirm],
            Self::Unknown => &[Priority::Unknown],
        }
    }
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
    // Until Belvo has told of a link, a job wants it no more urgently than its webhooks do. The other triggers need no
    // such check: an operator vouches for the link, and a second look only comes after a list.
    let is_usual = trigger != Trigger::Schedule || news_priority(tx, link_id)? != Priority::Unknown;
    let priority = if is_usual { trigger.priority() } else { Priority::Unknown };
    let Some(pending) = Pending::read(tx, link_id, resource)? else {
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
    let (due, priority) = pending.after(trigger, priority, not_before);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority.number()],
    )?;
    Ok(())
}

/// Like [`mark`], for a webhook that counted `count` records; the caller has made sure that its link is not erased. A
/// webhook without a count clears the count of earlier ones, unless the fetch that those asked for is still to come.
/// Webhooks of a link that Belvo has not told of wait in a lane of their own until it does: see [`confirm`].
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
    let Some(pending) = Pending::read(tx, link_id, resource)? else {
        tx.execute(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority, webhook_count) VALUES ($1, $2, 1, $3, $4, $5)",
            args![link_id, resource.name, now, news_priority(tx, link_id)?.number(), count],
        )?;
        return Ok(());
    };
    // What is urgent already stays so, whoever the link is.
    let is_urgent = pending.due.is_some() && pending.priority == Priority::Webhook;
    let priority = if is_urgent { pending.priority } else { news_priority(tx, link_id)? };
    let (due, priority) = pending.after(Trigger::Webhook, priority, now);
    tx.execute(
        "UPDATE refreshes SET marks = marks + 1, due_at = $3, priority = $4, blocked_reason = NULL, \
         webhook_count = CASE WHEN $5 IS NOT NULL OR marks = cleared THEN $5 ELSE webhook_count END \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name, due, priority.number(), count],
    )?;
    Ok(())
}

/// The priority of a webhook about the link. A link whose user has an open widget session counts as one that Belvo told
/// of, but only one such link for each user: whoever forges webhooks can name that user, too.
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

/// Refreshes of `resource` that failed with `code` are due now, inside the caller's transaction: another one of them
/// came through. Gives their number.
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
struct Pending {
    due: Option<Timestamp>,
    priority: Priority,
    attempts: i64,
    last_started: Option<Timestamp>,
    /// What it failed with last.
    failure: Option<Code>,
}

impl Pending {
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
        // Whether this trigger means that the cause of the last failure may be gone, so that the wait after it is cut
        // short: an operator's order does, unless Belvo asked for patience; a webhook does where Belvo refused; a job
        // never does.
        let is_mended = match trigger {
            Trigger::Operator => !matches!(self.failure, Some(Code::RateLimited | Code::ApiBlocked)),
            Trigger::Webhook => self.failure.is_some_and(|code| code.is_refused() || code == Code::ApiAuth),
            Trigger::Schedule | Trigger::Confirm => false,
        };
        match self.due {
            // It failed and waits for its next try, which being wanted again does not bring forward.
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

/// Ends the lease of `refresh`, inside the transaction that keeps its result. False when the lease was lost: then the
/// caller must keep nothing. A refresh that came to nothing goes back with at least the priority that it was claimed
/// with, also when something less urgent has asked for it meanwhile.
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
                // A later time was kept by a version that believed any time of Belvo's; it does not count.
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

/// Lets refreshes be due earlier by as much as the clock was set back: they would wait for so much longer. A second
/// look waits all the same, because it counts from lists that go by the clock from before.
///
/// # Errors
/// [`Error::Database`].
pub fn move_back(tx: &Tx<'_>, by: Duration) -> Result<(), Error> {
    let sql = "UPDATE refreshes SET due_at = due_at - $1 WHERE due_at IS NOT NULL AND priority <> $2";
    tx.execute(sql, args![by, Priority::Confirm.number()]).map(drop)
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
    /// The queue in `store`. Leases of an earlier process are void, because only one process owns the state: their
    /// refreshes are due again. What an earlier version of the program blocked because Belvo refused it is tried again.
    /// The caller runs [`links::hold_all`](crate::links::hold_all) next, which takes out again what belongs to paused
    /// links.
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
    pub async fn claim(&self, request: ClaimRequest) -> Result<Claimed, Error> {
        let now = self.clock.now();
        self.store
            .write(move |tx| {
                let (taken, due) = choose(tx, &request, now)?;
                if taken.is_empty() {
                    return Ok(Claimed { requests: Vec::new(), due });
                }
                let lease = tx.next_number("lease")?;
                let requests = taken.into_iter().map(|refreshes| {
                    refreshes.into_iter().filter_map(|refresh| take(tx, &refresh, lease, now).transpose()).collect()
                });
                Ok(Claimed { requests: requests.collect::<Result<_, Error>>()?, due })
            })
            .await
    }

    /// When the next refresh of the lane that is not leased falls due, which may be in the past; `None` when nothing
    /// waits.
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
            let request = ClaimRequest { lane, is_reversed: false, requests: 9, fit: Box::new(|_, _| 50) };
            self.queue.claim(request).await.unwrap().requests
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
