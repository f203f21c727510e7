//! Orders that are waited for: how each refresh, or each link that Belvo reads again, has come out.
//!
//! *Takes* what was asked for, on record already. *Gives* a report of what is done and what failed. *Promises* to wait
//! no longer than it takes each to come to something, and for none that Belvo keeps from leaving. *Not here*: the
//! asking, and the publish that follows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{NEWS_WITHIN, Operations, Refused};
use crate::belvo::{Client, Code, Down};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::links::{self, LINK_DELETED, PAUSED};
use crate::resources::Resource;
use crate::runs::{Failed, Report};
use crate::store::{self, Tx};
use crate::{queue, recollect};

/// Shortest pause between two looks at how far refreshes have come, because a look asks for each that is still wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A pause also lasts at least so many times as long as the look before it.
const LOOKS: u32 = 10;

/// The end of a pause, and the retry of an older failure, are waited for only if they come within this time.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The refreshes that an order is about.
pub(super) type Wanted = Vec<(LinkId, &'static Resource)>;

/// What was known of Belvo when an order came.
#[derive(Clone, Copy)]
pub(super) struct BelvoBefore {
    down: Option<Down>,
    keys_refused: u64,
}

impl BelvoBefore {
    pub(super) fn of(client: &Client) -> Self {
        Self { down: client.down(), keys_refused: client.keys_refused() }
    }

    /// Why what waits comes to nothing: Belvo was found to refuse the keys, or to be down, once more since; or all
    /// calls pause, and not for a moment.
    fn worsened(self, client: &Client) -> Option<Code> {
        if client.refuses_keys() && client.keys_refused() > self.keys_refused {
            return Some(Code::ApiAuth);
        }
        let down = client.down().filter(|down| self.down.is_none_or(|before| down.found > before.found));
        down.map(|down| down.code).or_else(|| client.budget().paused_longer_than(LONGEST_WAIT))
    }
}

impl Operations {
    /// Waits until what Belvo reads again is listed, or is given up.
    pub(super) async fn follow_recollects(&self, mut asked: Vec<LinkId>, report: &Report) -> Result<(), Failed> {
        let mut settled = self.settled.subscribe();
        while !asked.is_empty() {
            settled.mark_unchanged();
            let (now, begun) = (self.clock.now(), Instant::now());
            let look = move |tx: &Tx<'_>| {
                let (mut seen, mut missed, mut waiting) = (0, 0, Vec::new());
                for link in asked {
                    match recollect::result(tx, &link, now)? {
                        recollect::Seen::Yes => seen += 1,
                        recollect::Seen::GivenUp => missed += 1,
                        recollect::Seen::NotYet => waiting.push(link),
                    }
                }
                Ok((seen, missed, waiting))
            };
            let (seen, missed, waiting) = self.store.read(look).await?;
            let look = begun.elapsed();
            report.add_done(seen);
            report.failed("nothing_read", missed);
            asked = waiting;
            if !asked.is_empty() {
                // A deadline that passes is no news.
                let _ = tokio::time::timeout(NEWS_WITHIN, settled.changed()).await;
                tokio::time::sleep(pause_after(look)).await;
            }
        }
        Ok(())
    }

    /// Waits until each refresh, ordered at `since`, has come to something: an answer, or a first failure; and no
    /// longer for those that wait once Belvo is found to be down, or to refuse the keys, once more than `before`, or
    /// asks for long patience. These stay marked.
    pub(super) async fn follow(
        &self,
        mut wanted: Wanted,
        since: Timestamp,
        before: BelvoBefore,
        report: &Report,
    ) -> Result<(), Failed> {
        let mut settled = self.settled.subscribe();
        loop {
            settled.mark_unchanged();
            // Before the look: what ends in between is counted as what it came to.
            let why = before.worsened(&self.client);
            let (now, begun) = (self.clock.now(), Instant::now());
            let (done, failed, waiting) = self.store.read(move |tx| look(tx, wanted, since, now)).await?;
            let look = begun.elapsed();
            report.add_done(done);
            for (code, count) in failed {
                report.failed(&code, count);
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if let Some(code) = why {
                // None of these is fetched before Belvo is up, or the keys are good, again; they stay marked until
                // then.
                report.failed(code.name(), waiting.len() as u64);
                return Ok(());
            }
            wanted = waiting;
            // Nobody announces that the keys are refused, as it ends no refresh: so look again after a while.
            let _ = tokio::time::timeout(NEWS_WITHIN, settled.changed()).await;
            tokio::time::sleep(pause_after(look)).await;
        }
    }
}

/// How long to wait after a look that took `look`.
fn pause_after(look: Duration) -> Duration {
    LOOK_AGAIN.max(look * LOOKS)
}

/// How many of these refreshes are done, how many failed, by code, and which still wait. A failure from before `since`
/// is not this run's: the run waits for the next try, unless that is further off than [`LONGEST_WAIT`]. A refresh
/// that only waits for a second look is done: the order had raised its priority, so the list that the order asked for
/// has booked the second look.
fn look(
    tx: &Tx<'_>,
    wanted: Wanted,
    since: Timestamp,
    now: Timestamp,
) -> Result<(u64, BTreeMap<String, u64>, Wanted), store::Error> {
    let (mut done, mut failed, mut waiting) = (0, BTreeMap::new(), Vec::new());
    for (link_id, resource) in wanted {
        // It was marked, so that only an erasure can have taken it away.
        let Some(state) = queue::State::of(tx, &link_id, resource)? else {
            *failed.entry(Refused::Erased.code().to_owned()).or_default() += 1;
            continue;
        };
        let is_own = state.failed_at.is_some_and(|at| at >= since);
        let is_far = state.due_at.is_some_and(|due| due.since(now) > LONGEST_WAIT);
        let (is_idle, has_failed) = (state.is_idle(now), state.attempts > 0 && (is_own || is_far));
        // What a paused link failed at before says nothing of this order.
        let paused = match state.blocked_reason.as_deref().filter(|reason| *reason == PAUSED) {
            // Nobody resumes it.
            Some(_) if links::is_deleted(links::status(tx, &link_id)?.as_deref()) => Some(LINK_DELETED),
            paused => paused,
        };
        match paused.or_else(|| state.trouble()) {
            Some(code) if is_idle || has_failed => *failed.entry(code.to_owned()).or_default() += 1,
            _ if is_idle => done += 1,
            _ => waiting.push((link_id, resource)),
        }
    }
    Ok((done, failed, waiting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Trigger;
    use crate::resources::owners;
    use crate::store::{Store, args};

    #[test]
    fn a_look_that_takes_long_is_followed_by_a_longer_pause() {
        assert_eq!(pause_after(Duration::from_millis(3)), LOOK_AGAIN);
        assert_eq!(pause_after(Duration::from_millis(900)), Duration::from_secs(9));
    }

    #[tokio::test]
    async fn a_failure_from_before_the_order_is_not_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let id = |digit: u8| -> LinkId { format!("00000000-0000-4000-8000-00000000000{digit}").parse().unwrap() };
        // Ordered at 100; the last failure and the next try of each.
        let tries = [(1, 90, 103), (2, 90, 700), (3, 101, 104)];
        let insert = move |tx: &Tx<'_>| {
            tries.iter().try_for_each(|&(digit, failed, due)| {
                tx.execute(
                    "INSERT INTO refreshes (link_id, resource, marks, due_at, priority, attempts, last_error_code, last_error_at) \
                     VALUES ($1, 'owners', 1, $2, 1, 1, 'api_down', $3)",
                    args![&id(digit), at(due), at(failed)],
                )
                .map(drop)
            })
        };
        store.write(insert).await.unwrap();
        let wanted = tries.map(|(digit, ..)| (id(digit), &owners::RESOURCE)).to_vec();
        let (done, failed, waiting) = store.read(move |tx| look(tx, wanted, at(100), at(102))).await.unwrap();
        assert_eq!((done, failed), (0, BTreeMap::from([("api_down".to_owned(), 2)])));
        assert_eq!(waiting.into_iter().map(|(link_id, _)| link_id).collect::<Vec<_>>(), [id(1)]);
    }

    #[tokio::test]
    async fn a_link_that_was_deleted_is_called_that_also_when_an_operator_had_paused_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let link: LinkId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let work = move |tx: &Tx<'_>| {
            let look =
                || look(tx, vec![(link.clone(), &owners::RESOURCE)], at(100), at(103)).map(|(_, failed, _)| failed);
            links::note_wish(tx, &link, at(99))?;
            queue::mark(tx, &link, &owners::RESOURCE, Trigger::Operator, at(100))?;
            links::pause_by_operator(tx, &link, at(101))?;
            let paused = look()?;
            links::note_status(tx, &link, links::DELETED, at(102))?;
            Ok::<_, store::Error>((paused, look()?))
        };
        let (paused, deleted) = store.write(work).await.unwrap();
        assert_eq!(paused, BTreeMap::from([(PAUSED.to_owned(), 1)]));
        assert_eq!(deleted, BTreeMap::from([(LINK_DELETED.to_owned(), 1)]));
    }

    #[tokio::test]
    async fn a_second_look_in_an_hour_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let link: LinkId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let (wanted, confirmed) = (vec![(link.clone(), &owners::RESOURCE)], link.clone());
        let look_at = |seconds| {
            let wanted = wanted.clone();
            store.read(move |tx| look(tx, wanted, at(100), at(seconds)))
        };
        // A second look was booked already when the order came: what it waits for is the order's own now.
        let mark = move |tx: &Tx<'_>| {
            queue::mark(tx, &link, &owners::RESOURCE, Trigger::Confirm, at(3700))?;
            queue::mark(tx, &link, &owners::RESOURCE, Trigger::Operator, at(100))
        };
        store.write(mark).await.unwrap();
        assert_eq!(look_at(101).await.unwrap().2.len(), 1);
        // Its list lacks a row, and another is to agree in an hour.
        let listed = move |tx: &Tx<'_>| {
            tx.execute("UPDATE refreshes SET due_at = NULL, cleared = marks, last_fetched_at = $1", args![at(102)])?;
            queue::mark(tx, &confirmed, &owners::RESOURCE, Trigger::Confirm, at(3702))
        };
        store.write(listed).await.unwrap();
        let (done, failed, waiting) = look_at(103).await.unwrap();
        assert_eq!((done, failed, waiting.len()), (1, BTreeMap::new(), 0));
        assert_eq!(look_at(3703).await.unwrap().2.len(), 1, "a second look that is due is under way");
    }
}
