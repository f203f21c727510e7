//! Asks Belvo to read institutions again. Each ask is billed.
//!
//! *Takes* links and resources. *Gives* what was asked and what was not, and why. *Promises* that a link is asked for
//! at most once in ten minutes, also across a crash, because the ask is written down before it is sent; and that what
//! comes of it is listed when its webhook comes, or after a deadline without one. *Not here*: the listing, which is any
//! other refresh.
//!
//! Employments alone are asked for by `POST /api/br/employments/`, which reads nothing else. Any other set goes through
//! `POST /api/links/{id}/refresh/`, because owners have no asynchronous call of their own, and one ask for both is one
//! on the bill.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::doubled;
use crate::belvo::{self, Client, Code, Decision, Failure, Patience};
use crate::clock::{Clock, Timestamp};
use crate::deadlines::{self, Deadlines};
use crate::lane::result_of;
use crate::link_id::LinkId;
use crate::links;
use crate::links::freshness::{self, Scope};
use crate::queue::{self, Queue, Trigger};
use crate::resources::{Resource, employments};
use crate::store::{Error, Row, Store, Tx, args};

/// Belvo reads a link's institution at most once in this time.
pub const COOL_DOWN: Duration = Duration::from_mins(10);

/// How long to wait for a webhook before the first look without one, where webhooks can come.
pub const WITH_WEBHOOKS: Duration = Duration::from_mins(5);

/// The same where none can, because nothing listens.
pub const WITHOUT_WEBHOOKS: Duration = Duration::from_secs(10);

/// Results that are not there after this time will come with a webhook, or by the schedule.
const GIVE_UP: Duration = Duration::from_mins(15);

/// Between two looks there is at most so many times the wait before the first.
const LONGEST_WAIT: u32 = 256;

/// Deadlines are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Asks under way at the same time; the request budget decides how fast they go.
const AT_ONCE: usize = 8;

/// The links in `scope` that a recollect would help. An earlier ask that surely never reached Belvo does not count: it
/// failed, and its results were never looked for.
///
/// # Errors
/// [`Error::Database`].
pub fn in_scope(tx: &Tx<'_>, scope: &Scope, now: Timestamp) -> Result<Vec<LinkId>, Error> {
    let before = now - scope.older_than;
    let mut links = Vec::new();
    for resource in &scope.resources {
        let (is_read, is_unread) = (freshness::is_read(resource), freshness::is_unread("$3"));
        let sql = format!(
            "SELECT l.link_id FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = $1 \
             LEFT JOIN recollects r ON r.link_id = l.link_id \
             WHERE ($2 IS NULL OR l.access_mode = $2) AND l.status = 'valid' AND l.paused_reason IS NULL \
             AND {is_read} AND {is_unread} AND (coalesce(r.asked_at, 0) <= $3 \
             OR (r.last_error_code IS NOT NULL AND r.due_at IS NULL AND r.attempts = 0))"
        );
        let due = tx.all(&sql, args![resource.name, scope.access_mode.as_deref(), before], |row| row.link_id(0))?;
        links.extend(due);
    }
    links.sort_unstable();
    links.dedup();
    Ok(links)
}

/// Whether what Belvo read again is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is.
    Yes,
    /// It is waited for.
    NotYet,
    /// It was waited for long enough; it may still come.
    GivenUp,
}

/// What became of the latest ask for `link`, as of `now`.
///
/// # Errors
/// [`Error::Database`].
pub fn result(tx: &Tx<'_>, link: &LinkId, now: Timestamp) -> Result<Seen, Error> {
    let latest =
        tx.one(&format!("SELECT {} FROM recollects WHERE link_id = $1", Ask::COLUMNS), args![link], Ask::read)?;
    let Some(ask) = latest else { return Ok(Seen::GivenUp) };
    for resource in &ask.resources {
        let brought = ask.brought(tx, resource, now)?;
        if brought.is_under_way || (!brought.is_seen && ask.due_at.is_some()) {
            return Ok(Seen::NotYet);
        }
        if !brought.is_seen {
            return Ok(Seen::GivenUp);
        }
    }
    Ok(Seen::Yes)
}

/// What is known before anything is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Links that will be asked for, each with one call on the bill.
    pub billed_calls: usize,
    /// Links that were asked for minutes ago.
    pub cooling: usize,
    /// Links that are not tracked, or need their user, or are gone.
    pub unfit: usize,
}

/// What asking for `links` would come to.
///
/// # Errors
/// [`Error::Database`].
pub fn estimate(tx: &Tx<'_>, links: &[LinkId], now: Timestamp) -> Result<Estimate, Error> {
    let mut estimate = Estimate::default();
    for link in links {
        match fitness(tx, link, now)? {
            Fitness::Fit => estimate.billed_calls += 1,
            Fitness::Cooling => estimate.cooling += 1,
            Fitness::Unfit => estimate.unfit += 1,
        }
    }
    Ok(estimate)
}

/// What asking came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Links that Belvo reads again, each with one call on the bill.
    pub asked: Vec<LinkId>,
    /// Links that were asked for minutes ago.
    pub cooling: usize,
    /// Links that are not tracked, or need their user, or are gone.
    pub unfit: usize,
    /// How many asks failed, by the stable code of the failure.
    pub failed: BTreeMap<&'static str, usize>,
}

/// Asks, and looks after what was asked. Cheap to clone.
#[derive(Clone)]
pub struct Recollector {
    client: Client,
    store: Store,
    queue: Queue,
    clock: Clock,
    patience: Duration,
    /// Links whose ask is on its way, which may take long: it waits while Belvo is down or asks for patience.
    asking: Arc<Mutex<HashSet<LinkId>>>,
}

impl Recollector {
    /// One that asks `client`, and lists results after `patience` when no webhook tells of them: [`WITH_WEBHOOKS`] or
    /// [`WITHOUT_WEBHOOKS`].
    pub fn new(client: Client, store: Store, queue: Queue, clock: Clock, patience: Duration) -> Self {
        Self { client, store, queue, clock, patience, asking: Arc::default() }
    }

    /// Asks for `resources` of each of `links`.
    ///
    /// # Errors
    /// [`Error`]; what was asked until then stays asked. A failure of Belvo's is part of the outcome; refused keys end
    /// the asking, and for the impatient a Belvo that is down or asks for long patience.
    pub async fn recollect(
        &self,
        links: Vec<LinkId>,
        resources: &[&'static Resource],
        patience: Patience,
    ) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let (mut links, mut asks) = (links.into_iter(), JoinSet::new());
        let mut is_open = true;
        loop {
            while is_open && asks.len() < AT_ONCE {
                let Some(link) = links.next() else { break };
                let (recollector, resources) = (self.clone(), resources.to_vec());
                asks.spawn(async move { recollector.ask(link, &resources, patience).await });
            }
            let Some(ended) = asks.join_next().await else { return Ok(outcome) };
            match result_of(ended)? {
                Asked::Taken(link) => outcome.asked.push(link),
                Asked::Not(Fitness::Cooling) => outcome.cooling += 1,
                Asked::Not(_) => outcome.unfit += 1,
                Asked::Failed(failure) => {
                    let is_in_vain = patience == Patience::Short && self.client.in_vain().is_some();
                    is_open &= failure.kind != Decision::Stop && !is_in_vain;
                    *outcome.failed.entry(failure.code.name()).or_default() += 1;
                }
            }
        }
    }

    /// Asks for one link, unless that is being done already: each ask is one call on the bill.
    async fn ask(&self, link_id: LinkId, resources: &[&'static Resource], patience: Patience) -> Result<Asked, Error> {
        if !self.lock().insert(link_id.clone()) {
            return Ok(Asked::Not(Fitness::Cooling));
        }
        let _asking = Asking { recollector: self, link_id: link_id.clone() };
        self.ask_once(link_id, resources, patience).await
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<LinkId>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_once(
        &self,
        link_id: LinkId,
        resources: &[&'static Resource],
        for_belvo: Patience,
    ) -> Result<Asked, Error> {
        let (now, patience) = (self.clock.now(), self.patience);
        let (link, names) =
            (link_id.clone(), resources.iter().map(|resource| resource.name).collect::<Vec<_>>().join(","));
        let fitness = self.store.write(move |tx| note_ask(tx, &link, &names, patience, now)).await?;
        if fitness != Fitness::Fit {
            return Ok(Asked::Not(fitness));
        }
        let sent = match resources {
            [one] if one.name == employments::RESOURCE.name => {
                belvo::links::collect(&self.client, &link_id, one.endpoint, for_belvo).await
            }
            _ => {
                let names: Vec<_> = resources.iter().map(|resource| resource.webhook_type).collect();
                belvo::links::refresh(&self.client, &link_id, &names, for_belvo).await
            }
        };
        let Err(failure) = sent else {
            metrics::counter!("vinculo_recollects_total", "outcome" => "ok").increment(1);
            let (link, now) = (link_id.clone(), self.clock.now());
            self.store.write(move |tx| note_arrival(tx, &link, None, patience, now)).await?;
            return Ok(Asked::Taken(link_id));
        };
        metrics::counter!("vinculo_recollects_total", "outcome" => failure.code.name()).increment(1);
        tracing::warn!(
            code = failure.code.name(),
            link = link_id.log_tag(),
            request_id = failure.request_id,
            "not recollected: {failure}"
        );
        let (now, kept) = (self.clock.now(), failure.clone());
        let noted = self.store.write(move |tx| {
            if kept.may_have_arrived() {
                note_arrival(tx, &link_id, Some(kept.code.name()), patience, now)
            } else {
                note_refusal(tx, &link_id, &kept, now)
            }
        });
        noted.await?;
        Ok(Asked::Failed(failure))
    }

    /// Looks after deadlines until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        deadlines::run(&self, LOOK_EVERY, "recollects", shutdown).await;
    }
}

impl Deadlines for Recollector {
    /// Lists what should have been read by now and of which no webhook told. Gives how many refreshes that marked.
    ///
    /// # Errors
    /// [`Error`].
    async fn follow_up(&self) -> Result<usize, Error> {
        let (now, patience) = (self.clock.now(), self.patience);
        let asking = self.lock().clone();
        let marked = self.store.write(move |tx| mark_overdue(tx, &asking, patience, now)).await?;
        if marked > 0 {
            self.queue.announce();
        }
        Ok(marked)
    }
}

/// A link that is being asked for, until this goes.
struct Asking<'r> {
    recollector: &'r Recollector,
    link_id: LinkId,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.recollector.lock().remove(&self.link_id);
    }
}

/// What became of one ask.
enum Asked {
    Taken(LinkId),
    Not(Fitness),
    Failed(Failure),
}

/// Whether asking for a link makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fitness {
    Fit,
    Cooling,
    Unfit,
}

fn fitness(tx: &Tx<'_>, link: &LinkId, now: Timestamp) -> Result<Fitness, Error> {
    let known = tx.one(
        "SELECT coalesce(l.status, 'valid') = 'valid' AND l.paused_reason IS NULL, coalesce(r.free_at, 0) > $2 FROM links l \
         LEFT JOIN recollects r ON r.link_id = l.link_id WHERE l.link_id = $1",
        args![link, now],
        |row| Ok((row.int(0)? == 1, row.int(1)? == 1)),
    )?;
    Ok(match known {
        Some((true, false)) => Fitness::Fit,
        Some((true, true)) => Fitness::Cooling,
        _ => Fitness::Unfit,
    })
}

/// Writes an ask down before it is sent, so that no crash makes it a second one on the bill.
fn note_ask(tx: &Tx<'_>, link: &LinkId, resources: &str, patience: Duration, now: Timestamp) -> Result<Fitness, Error> {
    let fitness = fitness(tx, link, now)?;
    if fitness == Fitness::Fit {
        let change = tx.change()?;
        tx.execute(
            "INSERT INTO recollects (link_id, resources, asked_at, free_at, change, due_at) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (link_id) DO UPDATE SET resources = excluded.resources, asked_at = excluded.asked_at, \
             free_at = excluded.free_at, change = excluded.change, due_at = excluded.due_at, attempts = 0, \
             last_error_code = NULL",
            args![link, resources, now, now + COOL_DOWN, change, now + patience],
        )?;
    }
    Ok(fitness)
}

/// Belvo took the ask, or may have, with `code`: it may have waited long before it was sent. From now on the link
/// rests, and results are due.
fn note_arrival(
    tx: &Tx<'_>,
    link: &LinkId,
    code: Option<&str>,
    patience: Duration,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "UPDATE recollects SET free_at = $2, due_at = $3, last_error_code = $4 WHERE link_id = $1";
    tx.execute(sql, args![link, now + COOL_DOWN, now + patience, code]).map(drop)
}

fn note_refusal(tx: &Tx<'_>, link: &LinkId, failure: &Failure, now: Timestamp) -> Result<(), Error> {
    // Only Belvo's own "please wait … minutes" puts a link on cool-down.
    let rest = if failure.code == Code::LinkCooling { failure.delay(0, &mut rand::rng()) } else { Duration::ZERO };
    let free_at = now + rest;
    tx.execute(
        "UPDATE recollects SET free_at = $2, due_at = NULL, last_error_code = $3 WHERE link_id = $1",
        args![link, free_at, failure.code.name()],
    )?;
    match failure.kind {
        Decision::AskUser | Decision::Gone => links::note_failure(tx, link, failure, now),
        _ => Ok(()),
    }
}

/// Marks the resources of overdue asks whose results were not seen, and sets the next deadline. Asks that are still on
/// their way, `asking`, have none yet.
fn mark_overdue(tx: &Tx<'_>, asking: &HashSet<LinkId>, patience: Duration, now: Timestamp) -> Result<usize, Error> {
    let overdue = format!("SELECT {} FROM recollects WHERE due_at <= $1", Ask::COLUMNS);
    let mut overdue = tx.all(&overdue, args![now], Ask::read)?;
    overdue.retain(|ask| !asking.contains(&ask.link));
    let mut marked = 0;
    for ask in overdue {
        let mut is_waiting = false;
        for resource in &ask.resources {
            let brought = ask.brought(tx, resource, now)?;
            is_waiting |= !brought.is_seen;
            if !brought.is_seen && !brought.is_under_way {
                queue::mark(tx, &ask.link, resource, Trigger::Operator, now)?;
                // An operator may have stopped it since, or had it deleted.
                links::hold(tx, &ask.link, Some(resource))?;
                marked += 1;
            }
        }
        let wait = doubled(patience, ask.attempts, patience * LONGEST_WAIT);
        // The request may have been sent long after it was recorded; the cool-down counts from sending.
        let is_over = !is_waiting || now.since(ask.free_at - COOL_DOWN) + wait > GIVE_UP;
        tx.execute(
            "UPDATE recollects SET attempts = attempts + 1, due_at = $2 WHERE link_id = $1",
            args![&ask.link, (!is_over).then(|| now + wait)],
        )?;
    }
    Ok(marked)
}

/// The latest ask for a link, as it is on record.
struct Ask {
    link: LinkId,
    resources: Vec<&'static Resource>,
    asked_at: Timestamp,
    /// Number of the change that wrote it down.
    change: i64,
    /// Looks at what it brought that no webhook told of.
    attempts: u32,
    /// Until when the link rests.
    free_at: Timestamp,
    /// When it is looked at next without a webhook; `None` when that is over.
    due_at: Option<Timestamp>,
}

/// What an ask has brought of a resource.
struct Brought {
    /// Whether its list shows it.
    is_seen: bool,
    /// Whether it is to be listed, or is being so.
    is_under_way: bool,
}

impl Ask {
    /// What [`Ask::read`] reads.
    const COLUMNS: &str = "link_id, resources, asked_at, change, attempts, free_at, due_at";

    fn read(row: &Row<'_>) -> Result<Self, Error> {
        Ok(Self {
            link: row.link_id(0)?,
            resources: row.str(1)?.split(',').filter_map(Resource::by_name).collect(),
            asked_at: row.at(2)?,
            change: row.int(3)?,
            attempts: u32::try_from(row.int(4)?).unwrap_or(u32::MAX),
            free_at: row.at(5)?,
            due_at: row.opt_at(6)?,
        })
    }

    /// What it has brought of `resource`. That is seen when a later list differs from what was known at the ask, or
    /// when a webhook came and its list is kept. A second look that a list has booked for later, because it lacked a
    /// row, is not about what the ask brought.
    fn brought(&self, tx: &Tx<'_>, resource: &Resource, now: Timestamp) -> Result<Brought, Error> {
        let Some(state) = queue::State::of(tx, &self.link, resource)? else {
            return Ok(Brought { is_seen: false, is_under_way: false });
        };
        let webhook = "SELECT last_webhook_at FROM links WHERE link_id = $1";
        let webhook_at = tx.one(webhook, args![&self.link], |row| row.opt_at(0))?.flatten();
        let is_told = [state.fetched_at, webhook_at].iter().all(|at| at.is_some_and(|at| at >= self.asked_at));
        // A list that was begun before the ask shows nothing of what it brought.
        let is_later = state.started_at.is_some_and(|started_at| started_at >= self.asked_at);
        let is_seen = is_later && (state.sighted_seq.is_some_and(|seen| seen > self.change) || is_told);
        Ok(Brought { is_seen, is_under_way: !state.is_idle(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::Class;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Hand;
    use crate::resources;

    const ID: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    struct Place {
        recollector: Recollector,
        hand: Hand,
        _folder: tempfile::TempDir,
    }

    impl Place {
        /// A place that tracks one link, valid since a day.
        async fn new(client: Client) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let start = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
            let hand = Hand::at(start);
            let clock = hand.clock();
            let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
            let seen = start - Duration::from_hours(24);
            let track = move |tx: &Tx<'_>| {
                links::note_wish(tx, &link(), seen)?;
                tx.execute("UPDATE links SET status = 'valid', access_mode = 'single', lookup_due_at = NULL", args![])
            };
            store.write(track).await.unwrap();
            Self { recollector: Recollector::new(client, store, queue, clock, WITH_WEBHOOKS), hand, _folder: folder }
        }

        fn pass(&self, time: Duration) {
            self.hand.pass(time);
        }

        async fn ask(&self, resources: &[&'static Resource]) -> Outcome {
            self.recollector.recollect(vec![link()], resources, Patience::Long).await.unwrap()
        }

        async fn in_scope(&self, access_mode: Option<&str>, hours: u64) -> usize {
            let (older_than, access_mode) = (Duration::from_hours(hours), access_mode.map(str::to_owned));
            let scope = Scope { access_mode, older_than, resources: vec![&employments::RESOURCE] };
            let now = self.recollector.clock.now();
            self.recollector.store.read(move |tx| in_scope(tx, &scope, now)).await.unwrap().len()
        }

        async fn due_refreshes(&self) -> Vec<String> {
            let due = "SELECT resource FROM refreshes WHERE due_at IS NOT NULL ORDER BY resource";
            self.recollector.store.read(move |tx| tx.all(due, args![], |row| row.text(0))).await.unwrap()
        }
    }

    fn link() -> LinkId {
        ID.parse().unwrap()
    }

    fn accepted() -> Vec<u8> {
        scripted::json(202, r#"{"request_id":"b5d0106ac9cc43d5b36199fe831f6bbe"}"#)
    }

    #[tokio::test]
    async fn employments_alone_have_a_call_of_their_own_and_every_other_set_is_one_refresh_of_the_link() {
        let script = Script::start(|_| accepted()).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.asked, [link()]);
        place.pass(COOL_DOWN);
        assert_eq!(place.ask(&resources::ALL).await.asked, [link()]);
        let heads: Vec<_> = script.requests().iter().map(|head| head.to_ascii_lowercase()).collect();
        assert!(heads[0].starts_with("post /api/br/employments/ http"), "{}", heads[0]);
        assert!(heads[0].contains("x-belvo-request-mode: async\r\n"));
        assert!(heads[1].starts_with(&format!("post /api/links/{ID}/refresh/ http")), "{}", heads[1]);
        assert!(!heads[1].contains("x-belvo-request-mode"));
    }

    #[tokio::test]
    async fn a_link_rests_for_ten_minutes_and_longer_when_belvo_says_so() {
        let busy = r#"[{"code":"link_refreshed","message":"Please wait 7 minutes before trying again."}]"#;
        let script =
            Script::start(move |head| if head.contains("/refresh/") { scripted::json(409, busy) } else { accepted() })
                .await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.asked.len(), 1);
        place.pass(COOL_DOWN.saturating_sub(Duration::from_secs(1)));
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.cooling, 1);
        place.pass(Duration::from_secs(1));
        assert_eq!(place.ask(&resources::ALL).await.failed, BTreeMap::from([("link_cooling", 1)]));
        place.pass(Duration::from_secs(7 * 60 - 1));
        assert_eq!(place.ask(&resources::ALL).await.cooling, 1);
        // And a quarter of it, so that not all links are asked for at once.
        place.pass(Duration::from_secs(7 * 15 + 1));
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.asked.len(), 1);
        assert_eq!(script.requests().len(), 3);
    }

    #[tokio::test]
    async fn an_ask_that_is_still_on_its_way_is_not_sent_twice() {
        let script = Script::start(|_| accepted()).await;
        let client = script.client_within(1);
        let permit = client.budget().acquire(Class::Ordinary).await;
        let place = Place::new(client.clone()).await;
        let recollector = place.recollector.clone();
        let first = tokio::spawn(async move {
            recollector.recollect(vec![link()], &[&employments::RESOURCE], Patience::Long).await.unwrap()
        });
        while client.budget().usage().waiting_ordinary == 0 {
            tokio::task::yield_now().await;
        }
        place.pass(COOL_DOWN + Duration::from_mins(1));
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.cooling, 1);
        assert_eq!(place.recollector.follow_up().await.unwrap(), 0, "there is no result before it is sent");
        permit.unused();
        assert_eq!(first.await.unwrap().asked.len(), 1);
        place.pass(COOL_DOWN.saturating_sub(Duration::from_secs(1)));
        assert_eq!(place.ask(&[&employments::RESOURCE]).await.cooling, 1, "it rests since it was taken");
        assert_eq!(place.recollector.follow_up().await.unwrap(), 1, "and results are due since then");
        assert_eq!(script.requests().len(), 1);
    }

    #[tokio::test]
    async fn what_may_have_arrived_is_on_the_bill_and_what_belvo_refused_is_not() {
        for (status, may_ask_again) in [(503, false), (504, false), (408, false), (400, true), (403, true)] {
            let script = Script::start(move |_| scripted::json(status, r#"[{"code":"x"}]"#)).await;
            let place = Place::new(script.client()).await;
            assert_eq!(place.ask(&[&employments::RESOURCE]).await.failed.len(), 1, "{status}");
            place.pass(Duration::from_mins(9));
            assert_eq!(place.ask(&[&employments::RESOURCE]).await.cooling == 0, may_ask_again, "{status}");
            // Its results are looked for all the same.
            assert_eq!(place.recollector.follow_up().await.unwrap() > 0, !may_ask_again, "{status}");
        }
    }

    #[tokio::test]
    async fn what_no_webhook_tells_of_is_listed_after_a_while_and_not_for_ever() {
        let script = Script::start(|_| accepted()).await;
        let place = Place::new(script.client()).await;
        place.ask(&resources::ALL).await;
        place.pass(WITH_WEBHOOKS.saturating_sub(Duration::from_secs(1)));
        assert_eq!(place.recollector.follow_up().await.unwrap(), 0);
        place.pass(Duration::from_secs(1));
        assert_eq!(place.recollector.follow_up().await.unwrap(), resources::ALL.len());
        assert_eq!(place.due_refreshes().await, ["employments", "owners"]);
        for _ in 0..9 {
            place.pass(GIVE_UP);
            // What is under way already is not marked again.
            assert_eq!(place.recollector.follow_up().await.unwrap(), 0);
        }
        let open = "SELECT count(*) FROM recollects WHERE due_at IS NOT NULL";
        let open = place.recollector.store.read(move |tx| tx.one(open, args![], |row| row.int(0))).await.unwrap();
        assert_eq!(open, Some(0));
    }

    #[tokio::test]
    async fn a_webhook_and_its_list_end_the_wait() {
        let script = Script::start(|_| accepted()).await;
        let place = Place::new(script.client()).await;
        place.ask(&[&employments::RESOURCE]).await;
        place.pass(Duration::from_secs(30));
        let now = place.recollector.clock.now();
        let told = move |tx: &Tx<'_>| {
            links::note_webhook(tx, &link(), None, now)?;
            queue::mark(tx, &link(), &employments::RESOURCE, Trigger::Webhook, now)?;
            let listed =
                "UPDATE refreshes SET due_at = NULL, cleared = marks, last_started_at = $1, last_fetched_at = $1";
            tx.execute(listed, args![now])
        };
        place.recollector.store.write(told).await.unwrap();
        // The list lacked a row, and another is to agree in an hour: that is nothing to wait for.
        let again = now + Duration::from_hours(1);
        let booked = move |tx: &Tx<'_>| {
            assert_eq!(result(tx, &link(), now)?, Seen::Yes);
            queue::mark(tx, &link(), &employments::RESOURCE, Trigger::Confirm, again)?;
            Ok((result(tx, &link(), now)?, result(tx, &link(), again)?))
        };
        let results = place.recollector.store.write(booked).await.unwrap();
        assert_eq!(results, (Seen::Yes, Seen::NotYet));
        place.pass(WITH_WEBHOOKS);
        assert_eq!(place.recollector.follow_up().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_not_on_the_bill() {
        let script = Script::start(|_| scripted::json(400, r#"[{"code":"invalid_link"}]"#)).await;
        let place = Place::new(script.client()).await;
        let unknown: LinkId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
        let (links, now) = (vec![link(), unknown], place.recollector.clock.now());
        let estimated = links.clone();
        let estimated = place.recollector.store.read(move |tx| estimate(tx, &estimated, now)).await.unwrap();
        assert_eq!(estimated, Estimate { billed_calls: 1, cooling: 0, unfit: 1 });
        let outcome = place.recollector.recollect(links, &resources::ALL, Patience::Long).await.unwrap();
        assert_eq!((outcome.unfit, outcome.failed), (1, BTreeMap::from([("link_needs_user", 1)])));
        // From now on its user is needed first.
        assert_eq!(place.ask(&resources::ALL).await.unfit, 1);
        assert_eq!(script.requests().len(), 1);
    }

    #[tokio::test]
    async fn a_job_asks_for_links_of_its_kind_that_were_read_long_ago() {
        let script = Script::start(|_| accepted()).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.in_scope(Some("single"), 24).await, 1);
        assert_eq!(place.in_scope(None, 24).await, 1);
        assert_eq!(place.in_scope(Some("recurrent"), 24).await, 0);
        assert_eq!(place.in_scope(Some("single"), 25).await, 0);
        place.ask(&[&employments::RESOURCE]).await;
        assert_eq!(place.in_scope(Some("single"), 24).await, 0);
    }

    #[tokio::test]
    async fn a_job_asks_again_for_what_belvo_refused_and_not_for_what_may_be_on_the_bill() {
        for (status, expected) in [(400, 1), (504, 0)] {
            let script = Script::start(move |_| scripted::json(status, r#"[{"code":"x"}]"#)).await;
            let place = Place::new(script.client()).await;
            assert_eq!(place.ask(&[&employments::RESOURCE]).await.failed.len(), 1, "{status}");
            for _ in 0..3 {
                place.pass(GIVE_UP);
                place.recollector.follow_up().await.unwrap();
            }
            assert_eq!(place.in_scope(None, 24).await, expected, "{status}");
        }
    }
}
