//! Asks Belvo about single links: the new ones, many in one call.
//!
//! *Takes* lookups that are due. *Gives* what Belvo says to [`keep`]. *Promises* that a link is called gone only when
//! Belvo does not know it when asked for it alone, and is asked for again, with others, in case Belvo had forgotten it
//! for a while; and that whoever names links that do not exist keeps nobody else's waiting: those are asked for last,
//! one by one, when nothing new waits. *Not here*: links that nobody has named, which `reconcile.rs` finds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DELETED, DELETING, Directory, NOT_FOUND, Told, keep, note_status};
use crate::belvo::links::{LinkObject, MOST_IDS};
use crate::belvo::{self, Class, Code, Decision, Failure, Leave};
use crate::chronicle;
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::origin;
use crate::store::{Error, Tx, args};

/// New links are gathered for so long, because one call can look up many.
const GATHER_FOR: Duration = Duration::from_millis(200);

/// Longest time without a look at what is due, in case a clock was set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// After the state did not take what was looked up.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Longest time until a link is looked up again after the keys were refused.
const KEYS_AGAIN: Duration = Duration::from_secs(5);

/// Belvo's whole list is tried again so long after it could not be read.
const LIST_AGAIN: Duration = Duration::from_secs(30);

/// Pages of it that are read at most.
const MOST_PAGES: u32 = 10_000;

/// Unknown links are counted at most this often.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// Fallback deadline for a look-up by id that is queued in memory only.
const ALONE_WITHIN: Duration = Duration::from_mins(10);

/// Links that are kept in mind to be asked for alone; those beyond come again later.
const MOST_ALONE: usize = 10_000;

/// How often a link that Belvo had told of and does not know any more is asked for again, at ever longer intervals,
/// before that is left to the reconciliations.
const MOST_AGAIN: u32 = 20;
/// The same for a link of which Belvo never told.
const MOST_AGAIN_UNKNOWN: u32 = 6;

/// So many links of the last hour that nobody knows are more than a mistake.
const MANY_UNKNOWN: u64 = 50;

/// For how long a link that nobody knows counts.
const UNKNOWN_COUNTS: Duration = Duration::from_hours(1);

/// How long Belvo may take to tell of a new link before it counts as one that nobody knows.
const TOLD_WITHIN: Duration = Duration::from_mins(1);

/// The code of the alarm that webhooks name many links that Belvo does not know.
pub const UNKNOWN_LINKS: &str = "unknown_links";

/// A link whose lookup is due.
#[derive(Clone)]
struct DueLink {
    id: LinkId,
    attempts: u32,
    /// Whether Belvo said before that it does not know it.
    is_missing: bool,
}

/// What the lookups remember from one to the next.
#[derive(Default)]
struct Memory {
    /// Links that an answer for many lacked, and that are still to be asked for alone.
    alone: VecDeque<DueLink>,
    /// Pages of Belvo's whole list, when it was last read.
    pages: usize,
    /// When it may be read again.
    list_from: Option<Instant>,
    /// Whether many links that nobody knows were named,
    is_alarmed: bool,
    /// and when they are counted again.
    count_from: Option<Instant>,
}

impl Directory {
    /// Looks up links as they become known, until `shutdown`. `settled` is told of each answer.
    pub async fn run(self, settled: watch::Sender<()>, shutdown: CancellationToken) {
        let (mut news, mut ended, mut memory) = (self.queue.news(), settled.subscribe(), Memory::default());
        let looking = async {
            loop {
                news.mark_unchanged();
                ended.mark_unchanged();
                let looked_up = self.look_up_due(&mut memory).await;
                if let Err(error) = self.watch_unknown(&mut memory).await {
                    tracing::error!(code = error.code(), "unknown links could not be counted: {error}");
                }
                match looked_up {
                    Ok(0) if memory.alone.is_empty() => {}
                    Ok(0) => continue,
                    Ok(_) => {
                        settled.send_replace(());
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(code = error.code(), "links could not be looked up: {error}");
                        // Wait: each retry costs a call to Belvo and does not repair the state.
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
                let wait = self.until_due().await;
                tokio::select! {
                    _ = news.changed() => tokio::time::sleep(GATHER_FOR).await,
                    // What a refresh came to may say that its link is to be looked up.
                    _ = ended.changed() => tokio::time::sleep(GATHER_FOR).await,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        };
        shutdown.run_until_cancelled(looking).await;
    }

    /// Looks up links that are due, and gives their number: as many as fit one call; or all of them by Belvo's whole
    /// list, when that takes fewer calls; or, when nothing else is due, one link that an answer for many has left open.
    async fn look_up_due(&self, memory: &mut Memory) -> Result<usize, Error> {
        if self.due().await?.0.is_empty() {
            let Some(one) = memory.alone.pop_front() else { return Ok(0) };
            return self.look_up_alone(one).await;
        }
        // While calls pause, each try would fail and put the links off further.
        self.client.until_open().await;
        // Whoever becomes due while this waits goes with it.
        let permit = self.client.budget().acquire(Class::LookUp).await;
        let (due, new) = self.due().await?;
        if due.is_empty() {
            permit.unused();
            return Ok(0);
        }
        let leave = Leave::with(Class::LookUp, permit);
        let may_list = memory.list_from.is_none_or(|from| from <= Instant::now());
        if may_list && new > MOST_IDS * memory.pages.max(1) {
            return self.look_up_by_list(leave, new, memory).await;
        }
        let (ids, now): (Vec<LinkId>, _) = (due.iter().map(|one| one.id.clone()).collect(), self.clock.now());
        let (found, is_answered) = match belvo::links::by_ids(&self.client, &ids, leave).await {
            Ok(found) => (found, true),
            // Whatever this filter gives, also when it is ignored, one link at a time is what every server answers.
            Err(failure) if failure.is_refused() || failure.code == Code::InconsistentPages => (Vec::new(), false),
            Err(failure) => return self.postpone(due, &failure).await,
        };
        let (known, rest): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|one| found.iter().any(|link| link.id == one.id));
        let found = found.into_iter().filter(|link| known.iter().any(|one| one.id == link.id)).collect();
        if !self.keep_all(found, now).await? {
            return self
                .postpone([known, rest].concat(), &Failure::own(Code::SimulatedMismatch, belvo::links::PATH))
                .await;
        }
        let (missing, alone): (Vec<_>, Vec<_>) = rest.into_iter().partition(|one| is_answered && one.is_missing);
        for one in missing {
            self.note_not_found(one, &belvo::links::not_found(), now).await?;
        }
        self.leave_for_later(alone.iter().map(|one| one.id.clone()).collect()).await?;
        memory.alone.extend(alone.into_iter().take(MOST_ALONE.saturating_sub(memory.alone.len())));
        // A link that works again may have refreshes that waited for it.
        self.queue.announce();
        Ok(ids.len())
    }

    /// The links that are due, those that were asked for least often first, at most as many as fit one call; and, once
    /// that limit is reached, how many of all that are due were never asked for.
    async fn due(&self) -> Result<(Vec<DueLink>, usize), Error> {
        let now = self.clock.now();
        let read = move |tx: &Tx<'_>| {
            let due = tx.all(
                "SELECT link_id, lookup_attempts, coalesce(status, '') = $3 FROM links WHERE lookup_due_at <= $1 \
                 ORDER BY lookup_attempts, lookup_due_at LIMIT $2",
                args![now, MOST_IDS, NOT_FOUND],
                |row| {
                    let attempts = u32::try_from(row.int(1)?).unwrap_or(u32::MAX);
                    Ok(DueLink { id: row.link_id(0)?, attempts, is_missing: row.int(2)? == 1 })
                },
            )?;
            let count = "SELECT count(*) FROM links WHERE lookup_due_at <= $1 AND lookup_attempts = 0";
            let new = if due.len() < MOST_IDS { 0 } else { tx.count(count, args![now])? };
            Ok((due, usize::try_from(new).unwrap_or_default()))
        };
        self.store.read(read).await
    }

    /// Keeps what Belvo's whole list says of links that are due. Links that it lacks stay due, because rows come and go
    /// between two pages, but count as asked for once: they come after new ones, and the list is not read again for
    /// them. Reading stops as soon as asking for the `new` links by their ids would have taken fewer calls.
    async fn look_up_by_list(&self, leave: Leave, new: usize, memory: &mut Memory) -> Result<usize, Error> {
        let (mut leave, mut kept, mut before) = (Some(leave), 0, Vec::new());
        let begun_at = self.clock.now();
        for number in 1..=MOST_PAGES {
            let asked_at = self.clock.now();
            let leave = leave.take().unwrap_or_else(|| Leave::of(Class::LookUp));
            let page = match belvo::links::list_page(&self.client, number, self.client.page_size(), leave).await {
                Ok(page) => page,
                Err(failure) => {
                    tracing::warn!(
                        code = failure.code.name(),
                        page = number,
                        request_id = failure.request_id,
                        "{failure}"
                    );
                    memory.list_from = Some(Instant::now() + LIST_AGAIN);
                    break;
                }
            };
            let (has_next, links) = (page.has_next, page.links);
            let shown: Vec<LinkId> = links.iter().map(|link| link.id.clone()).collect();
            memory.pages = usize::try_from(number).unwrap_or(usize::MAX);
            if has_next && memory.pages * MOST_IDS >= new {
                // There are more pages than these: by their ids from now on.
                memory.pages += 1;
                memory.list_from = Some(Instant::now() + LIST_AGAIN);
                kept += self.keep_due(links, asked_at).await?;
                self.queue.announce();
                return Ok(kept.max(1));
            }
            kept += self.keep_due(links, asked_at).await?;
            // A page with a next one but only known items means endless paging.
            if !has_next || shown == before {
                break;
            }
            before = shown;
        }
        let asked_for = "UPDATE links SET lookup_attempts = 1 WHERE lookup_due_at <= $1 AND lookup_attempts = 0";
        self.store.write(move |tx| tx.execute(asked_for, args![begun_at])).await?;
        self.queue.announce();
        // At least one, so that what is left is looked at again at once.
        Ok(kept.max(1))
    }

    /// Keeps those of `links` that are due, and gives their number.
    async fn keep_due(&self, links: Vec<LinkObject>, asked_at: Timestamp) -> Result<usize, Error> {
        let (is_simulated, clock) = (self.client.is_simulated().unwrap_or_default(), self.clock.clone());
        self.store
            .write(move |tx| {
                let mut kept = 0;
                if !origin::agrees(tx, is_simulated)? {
                    return Ok(kept);
                }
                for link in &links {
                    let is_due = "SELECT 1 FROM links WHERE link_id = $1 AND lookup_due_at <= $2";
                    if tx.one(is_due, args![&link.id, asked_at], |_| Ok(()))?.is_some() {
                        keep(tx, link, Told { asked_at, kept_at: clock.now() }, None)?;
                        kept += 1;
                    }
                }
                Ok(kept)
            })
            .await
    }

    /// Looks up one link by its id.
    async fn look_up_alone(&self, one: DueLink) -> Result<usize, Error> {
        let now = self.clock.now();
        match belvo::links::get(&self.client, &one.id).await {
            Ok(link) => {
                if !self.keep_all(vec![link], now).await? {
                    let failure = Failure::own(Code::SimulatedMismatch, belvo::links::PATH);
                    return self.postpone(vec![one], &failure).await;
                }
            }
            Err(failure) if failure.kind == Decision::Gone => self.note_not_found(one, &failure, now).await?,
            Err(failure) => {
                self.postpone(vec![one], &failure).await?;
            }
        }
        self.queue.announce();
        Ok(1)
    }

    /// Puts these links off, because they are asked for alone from memory; if that is lost, they fall due by
    /// themselves.
    async fn leave_for_later(&self, ids: Vec<LinkId>) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let until = self.clock.now() + ALONE_WITHIN;
        self.store.write(move |tx| ids.iter().try_for_each(|id| put_off(tx, id, until))).await
    }

    /// Raises the alarm when many links were named that nobody knows, as by whoever got hold of a webhook's secret, and
    /// ends it. It stands in the log, in the metrics and among the failures that `status` counts. The daemon stays
    /// ready: all others are served, and nobody gains a replica that is taken out of service.
    async fn watch_unknown(&self, memory: &mut Memory) -> Result<(), Error> {
        if memory.count_from.is_some_and(|from| from > Instant::now()) {
            return Ok(());
        }
        memory.count_from = Some(Instant::now() + COUNT_EVERY);
        let now = self.clock.now();
        let unknown = self.store.read(move |tx| count_unknown(tx, now)).await?;
        metrics::gauge!("vinculo_unknown_links").set(u32::try_from(unknown).unwrap_or(u32::MAX));
        let is_alarmed = unknown >= MANY_UNKNOWN;
        if is_alarmed && !memory.is_alarmed {
            tracing::error!(
                code = UNKNOWN_LINKS,
                links = unknown,
                "webhooks name many links that Belvo does not know; they get a small part of the requests. If nobody tests, \
                 change the value of webhook.authorization"
            );
            self.store.write(move |tx| chronicle::note_failure(tx, UNKNOWN_LINKS, now)).await?;
        } else if memory.is_alarmed && !is_alarmed {
            tracing::info!(links = unknown, "hardly any webhook names links that Belvo does not know any more");
        }
        memory.is_alarmed = is_alarmed;
        Ok(())
    }

    /// Keeps what Belvo says of `links`; false when it is not the Belvo whose answers the state holds.
    async fn keep_all(&self, links: Vec<LinkObject>, asked_at: Timestamp) -> Result<bool, Error> {
        let (is_simulated, clock) = (self.client.is_simulated().unwrap_or_default(), self.clock.clone());
        self.store
            .write(move |tx| {
                if !links.is_empty() && !origin::agrees(tx, is_simulated)? {
                    return Ok(false);
                }
                let told = Told { asked_at, kept_at: clock.now() };
                links.iter().try_for_each(|link| keep(tx, link, told, None).map(drop))?;
                Ok(true)
            })
            .await
    }

    /// Notes that Belvo does not know the link, and when to ask again.
    async fn note_not_found(&self, one: DueLink, failure: &Failure, asked_at: Timestamp) -> Result<(), Error> {
        let DueLink { id, attempts, is_missing } = one;
        if !is_missing {
            tracing::warn!(
                code = "unknown_link",
                link = id.log_tag(),
                "Belvo does not know this link; its rows stay, and nothing of it is asked for"
            );
        }
        let again = asked_at + failure.delay(attempts, &mut rand::rng());
        self.store
            .write(move |tx| {
                tx.execute(
                    // Calls that failed before the first answer said nothing of the link.
                    "UPDATE links SET looked_up_at = $2, \
                     lookup_attempts = CASE WHEN looked_up_at IS NULL THEN 1 ELSE lookup_attempts + 1 END, \
                     lookup_due_at = CASE WHEN CASE WHEN looked_up_at IS NULL THEN 0 ELSE $4 END < CASE WHEN created_at IS NULL AND institution IS NULL THEN $6 ELSE $5 END \
                     AND coalesce(status, '') NOT IN ($7, $8) THEN $3 END WHERE link_id = $1",
                    args![
                        &id,
                        asked_at,
                        again,
                        attempts,
                        MOST_AGAIN,
                        MOST_AGAIN_UNKNOWN,
                        DELETING,
                        DELETED
                    ],
                )?;
                let known = "SELECT coalesce(status, '') FROM links WHERE link_id = $1";
                let status = match tx.one(known, args![&id], |row| row.text(0))?.as_deref() {
                    // Whoever has it deleted finds out whether it is gone: one answer is not enough for that.
                    Some(DELETING) => return Ok(()),
                    Some(DELETED) => DELETED,
                    _ => NOT_FOUND,
                };
                note_status(tx, &id, status, asked_at)
            })
            .await
    }

    async fn postpone(&self, due: Vec<DueLink>, failure: &Failure) -> Result<usize, Error> {
        let attempts = due.iter().map(|one| one.attempts).max().unwrap_or_default();
        let delay = failure.delay(attempts, &mut rand::rng());
        // Nothing leaves while the keys are refused, and news of new links wait for this.
        let delay = if failure.code == Code::ApiAuth { delay.min(KEYS_AGAIN) } else { delay };
        let until = self.clock.now() + delay;
        tracing::warn!(code = failure.code.name(), links = due.len(), request_id = failure.request_id, "{failure}");
        self.store.write(move |tx| due.iter().try_for_each(|link| put_off(tx, &link.id, until))).await?;
        Ok(0)
    }

    /// How long until the next link is due.
    async fn until_due(&self) -> Duration {
        let next =
            self.store.read(|tx| tx.one("SELECT min(lookup_due_at) FROM links", args![], |row| row.opt_at(0))).await;
        let next = next.ok().flatten().flatten();
        next.map_or(LONGEST_WAIT, |due| due.since(self.clock.now()).clamp(GATHER_FOR, LONGEST_WAIT))
    }
}

/// Has the link asked for again at `until`, whatever came of it this time.
fn put_off(tx: &Tx<'_>, link_id: &LinkId, until: Timestamp) -> Result<(), Error> {
    let sql = "UPDATE links SET lookup_due_at = $2, lookup_attempts = lookup_attempts + 1 WHERE link_id = $1";
    tx.execute(sql, args![link_id, until]).map(drop)
}

/// How many such links there are of the last hour, when that is the alarm.
///
/// # Errors
/// [`Error::Database`].
pub fn alarm(tx: &Tx<'_>, now: Timestamp) -> Result<Option<u64>, Error> {
    Ok(Some(count_unknown(tx, now)?).filter(|unknown| *unknown >= MANY_UNKNOWN))
}

fn count_unknown(tx: &Tx<'_>, now: Timestamp) -> Result<u64, Error> {
    tx.count(
        "SELECT count(*) FROM links WHERE first_seen_at > $1 AND created_at IS NULL AND institution IS NULL \
         AND (status = $3 OR (looked_up_at IS NULL AND first_seen_at < $2))",
        args![now - UNKNOWN_COUNTS, now - TOLD_WITHIN, NOT_FOUND],
    )
}

/// How many links wait to be looked up, but for those that Belvo had forgotten: whether it knows one of them again is
/// asked for a long time.
///
/// # Errors
/// [`Error::Database`].
pub fn lookups_pending(tx: &Tx<'_>) -> Result<u64, Error> {
    let sql = "SELECT count(*) FROM links WHERE lookup_due_at IS NOT NULL AND coalesce(status, '') <> $1";
    tx.count(sql, args![NOT_FOUND])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Clock;
    use crate::links::note_webhook;
    use crate::queue::Queue;
    use crate::store::Store;

    fn id(n: u32) -> String {
        format!("{n:08}-0000-4000-8000-000000000000")
    }

    fn told(n: u32) -> String {
        format!(r#"{{"id":"{}","institution":"inss_br_employment","status":"valid"}}"#, id(n))
    }

    struct Place {
        directory: Directory,
        _folder: tempfile::TempDir,
    }

    impl Place {
        async fn new(client: belvo::Client) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let clock = Clock::from_fn(|| Timestamp::from_micros(1_000_000));
            let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
            Self { directory: Directory::new(client, store, queue, clock), _folder: folder }
        }

        /// Webhooks name these links.
        async fn hear(&self, from: u32, to: u32) {
            let now = self.directory.clock.now();
            let hear = move |tx: &Tx<'_>| {
                (from..to).try_for_each(|n| note_webhook(tx, &id(n).parse().unwrap(), None, now).map(drop))
            };
            self.directory.store.write(hear).await.unwrap();
        }

        async fn count(&self, condition: &str) -> i64 {
            let sql = format!("SELECT count(*) FROM links WHERE {condition}");
            let read = self.directory.store.read(move |tx| tx.one(&sql, args![], |row| row.int(0)));
            read.await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn where_belvo_ignores_the_ids_each_link_is_asked_for_alone() {
        let script = Script::start(|head| match head {
            head if head.starts_with("GET /api/links/?") => {
                scripted::json(200, &format!(r#"{{"results":[{}],"next":"?"}}"#, told(99)))
            }
            head => match (0..3).find(|n| head.contains(&id(*n))) {
                Some(n) => scripted::json(200, &told(n)),
                None => scripted::json(404, r#"[{"code":"not_found"}]"#),
            },
        })
        .await;
        let place = Place::new(script.client()).await;
        place.hear(0, 3).await;
        let mut memory = Memory::default();
        while place.directory.look_up_due(&mut memory).await.unwrap() > 0 {}
        assert_eq!(place.count("status = 'valid'").await, 3);
        assert_eq!(script.requests().len(), 1 + 3);
    }

    #[tokio::test]
    async fn many_new_links_are_told_of_by_one_list_and_those_that_it_lacks_come_behind_the_next() {
        let script = Script::start(|head| {
            let told: Vec<String> = match head {
                // Belvo knows the even ones.
                head if head.contains("id__in=") => {
                    (0..200).step_by(2).map(id).filter(|id| head.contains(id)).collect()
                }
                head if head.starts_with("GET /api/links/?page_size=") => (0..80).step_by(2).map(id).collect(),
                _ => return scripted::json(404, r#"[{"code":"not_found"}]"#),
            };
            let told: Vec<String> = told
                .iter()
                .map(|id| format!(r#"{{"id":"{id}","institution":"inss_br_employment","status":"valid"}}"#))
                .collect();
            scripted::json(200, &format!(r#"{{"results":[{}],"next":null}}"#, told.join(",")))
        })
        .await;
        let place = Place::new(script.client()).await;
        let directory = &place.directory;
        place.hear(0, 80).await;
        let mut memory = Memory::default();
        assert_eq!(directory.look_up_due(&mut memory).await.unwrap(), 40);
        assert_eq!(script.requests().len(), 1, "the list alone");
        assert_eq!((place.count("status = 'valid'").await, place.count("lookup_attempts = 1").await), (40, 40));
        // Whoever comes later goes first, and a list is not worth it for the others.
        place.hear(80, 90).await;
        assert_eq!(directory.look_up_due(&mut memory).await.unwrap(), 50);
        assert!(script.requests()[1].contains("id__in=") && script.requests()[1].contains(&id(88)));
        assert_eq!((place.count("status = 'valid'").await, memory.alone.len()), (45, 45));
        // One at a time, each 404 is believed of an id that was asked for alone.
        while directory.look_up_due(&mut memory).await.unwrap() > 0 {}
        assert_eq!((place.count("status = 'valid'").await, place.count("status = 'not_found'").await), (45, 45));
        assert_eq!(script.requests().len(), 2 + 45);
    }
}
