//! Takes refreshes off the queue and runs them, as many requests at a time as the configuration says.
//!
//! *Promises* that a refresh that fails is tried again, waits for its user or stops, as its failure says, and holds up
//! no other; that a panic in one is a failure of that one; and that each failure is logged once, here.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::backoff::Backoff;
use crate::belvo::{Class, Code, Decision, Failure, Permit, Trouble, patience};
use crate::clock::Clock;
use crate::links;
use crate::queue::{self, ClaimRequest, Claimed, Lane, Outcome, Queue, Refresh};
use crate::records::Kept;
use crate::refresh::{Error, Refresher};
use crate::resources::{self, Resource};
use crate::store;

mod outcome;
mod refusals;

use refusals::Refusals;

/// Grace period for running refreshes at shutdown; unfinished ones are repeated after the next start.
const DRAIN: Duration = Duration::from_secs(8);
/// The same while Belvo is down: nearly all of them wait for it to be back.
const DRAIN_IN_VAIN: Duration = Duration::from_secs(1);

/// How long to wait after the queue itself failed; doubled with each failure in a row.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);
/// How long that wait is at most.
const LONGEST_QUEUE_PAUSE: Duration = Duration::from_secs(8);

/// The code of what Belvo refuses to the account, whatever the link.
const OF_THE_ACCOUNT: Code = Code::ApiForbidden;

/// Tries after which Belvo is asked whether it knows the link at all.
const GONE_AFTER: u32 = 2;

/// For each so many workers there is one more beside them for links that Belvo has not told of.
const UNKNOWN_PART: usize = 8;

/// One in so many workers is reserved for urgent requests, so that slow answers to others do not hold those up.
const URGENT_PART: usize = 4;

/// Requests that one claim may take at most.
const AT_ONCE: usize = 16;

/// Every so many claims of the ordinary lane begin with those who are served last, so that nobody waits for ever.
const LAST_FIRST: u64 = 10;

/// Runs refreshes until `shutdown`. `settled` is told of each one that has ended.
pub async fn run(
    refresher: Refresher,
    queue: Queue,
    clock: Clock,
    workers: usize,
    settled: watch::Sender<()>,
    shutdown: CancellationToken,
) {
    let urgent = Arc::new(Semaphore::new((workers / URGENT_PART).max(1)));
    let any = Arc::new(Semaphore::new((workers - workers / URGENT_PART).max(1)));
    let unknown = Arc::new(Semaphore::new((workers / UNKNOWN_PART).max(1)));
    let refusals = Refusals::default();
    let worker = Worker { refresher, queue, clock, settled, refusals, shutdown };
    let all = [urgent, Arc::clone(&any)];
    // Unknown links wait long for their small part of the budget, so they wait in places of their own.
    let few = Places { first: vec![Arc::clone(&unknown)], more: vec![unknown, Arc::clone(&any)] };
    tokio::join!(
        worker.clone().serve(Lane::Urgent, Places::of(all.to_vec())),
        worker.clone().serve(Lane::Ordinary, Places::of(vec![any])),
        worker.clone().serve(Lane::Unknown, few),
        worker.try_mended_keys(),
    );
}

/// The pools of workers from which a lane may take one.
struct Places {
    /// For the first request of a claim.
    first: Vec<Arc<Semaphore>>,
    /// For others that go with it.
    more: Vec<Arc<Semaphore>>,
}

impl Places {
    fn of(places: Vec<Arc<Semaphore>>) -> Self {
        Self { first: places.clone(), more: places }
    }
}

#[derive(Clone)]
struct Worker {
    refresher: Refresher,
    queue: Queue,
    clock: Clock,
    settled: watch::Sender<()>,
    refusals: Refusals,
    shutdown: CancellationToken,
}

impl Worker {
    /// Serves a lane: waits for a refresh that is due, then for somebody to run it, then for a place in the budget, and
    /// only then decides which refresh it is, so that nothing that was decided earlier is in the way of what is urgent.
    async fn serve(self, lane: Lane, places: Places) {
        let mut running = JoinSet::new();
        let serving = async {
            let (mut news, mut settled) = (self.queue.news(), self.settled.subscribe());
            for turn in 1.. {
                self.refresher.client.until_open().await;
                self.until_due(lane, &mut news, &mut settled).await;
                let place = one_of(&places.first).await;
                let permit = self.refresher.client.budget().acquire(lane.class()).await;
                let starts = self.more_starts(Start { place, permit }, lane, &places.more);
                let is_reversed = lane == Lane::Ordinary && turn % LAST_FIRST == 0;
                match self.claim(lane, is_reversed, starts.len()).await {
                    Ok(claimed) => self.start(claimed, starts, &mut running),
                    Err(error) => {
                        for start in starts {
                            start.permit.unused();
                        }
                        tracing::error!(code = error.code(), "the queue could not be read: {error}");
                        tokio::time::sleep(QUEUE_PAUSE).await;
                    }
                }
                while running.try_join_next().is_some() {}
            }
        };
        tokio::select! {
            () = serving => {}
            () = self.shutdown.cancelled() => {}
        }
        // What was claimed is run to its end, or done again after the next start.
        let drain = if self.refresher.client.down().is_some() { DRAIN_IN_VAIN } else { DRAIN };
        if tokio::time::timeout(drain, async { while running.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(
                code = "stopped_early",
                "refreshes were still running; they are done again after the next start"
            );
        }
    }

    /// Waits until a refresh of the lane is due.
    async fn until_due(&self, lane: Lane, news: &mut watch::Receiver<()>, settled: &mut watch::Receiver<()>) {
        loop {
            news.mark_unchanged();
            // A refresh that ends may leave its successor behind: to be tried again, or wanted again while it ran.
            settled.mark_unchanged();
            let next_due = match self.queue.next_due(lane).await {
                Ok(next_due) => next_due,
                Err(error) => {
                    tracing::error!(code = error.code(), "the queue could not be read: {error}");
                    tokio::time::sleep(QUEUE_PAUSE).await;
                    continue;
                }
            };
            let wait = next_due.map(|due| due.since(self.clock.now()));
            let until_due = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait.max(Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            };
            if wait.is_some_and(|wait| wait.is_zero()) {
                return;
            }
            tokio::select! {
                _ = news.changed() => {}
                () = until_due => {}
                Ok(()) = settled.changed() => {}
            }
        }
    }

    /// As many more places and permits as there are at this moment, beside the `first`.
    fn more_starts(&self, first: Start, lane: Lane, places: &[Arc<Semaphore>]) -> Vec<Start> {
        let mut starts = vec![first];
        while starts.len() < AT_ONCE
            && let Some(place) = places.iter().find_map(|places| Arc::clone(places).try_acquire_owned().ok())
            && let Some(permit) = self.refresher.client.budget().try_acquire(lane.class())
        {
            starts.push(Start { place, permit });
        }
        starts
    }

    fn claim(
        &self,
        lane: Lane,
        is_reversed: bool,
        requests: usize,
    ) -> impl Future<Output = Result<Claimed, store::Error>> + use<'_> {
        let trust = self.refresher.trust.clone();
        let fit = Box::new(move |link_id: &_, resource| trust.fit(link_id, resource));
        self.queue.claim(ClaimRequest { lane, is_reversed, requests, fit })
    }

    /// Starts what was claimed; permits that are left over were not used.
    fn start(&self, claimed: Claimed, starts: Vec<Start>, running: &mut JoinSet<()>) {
        for resource in claimed.due.iter().filter_map(|(name, due)| {
            let resource = Resource::by_name(name)?;
            self.refresher.trust.wants_check(resource, *due).then_some(resource)
        }) {
            let refresher = self.refresher.clone();
            running.spawn(async move { refresher.trust.check(&refresher.client, resource).await });
        }
        let mut requests = claimed.requests.into_iter();
        for Start { place, permit } in starts {
            let Some(mut refreshes) = requests.next() else {
                permit.unused();
                continue;
            };
            let worker = self.clone();
            running.spawn(async move {
                match refreshes.pop() {
                    Some(refresh) if refreshes.is_empty() => worker.run_one(refresh, permit).await,
                    Some(refresh) => {
                        refreshes.push(refresh);
                        worker.run_many(refreshes, permit).await;
                    }
                    None => permit.unused(),
                }
                drop(place);
                worker.settled.send_replace(());
            });
        }
    }

    /// Runs refreshes that go in one request.
    async fn run_many(&self, refreshes: Vec<Refresh>, permit: Permit) {
        let resource = refreshes.first().map(|refresh| refresh.resource.name);
        let span = tracing::debug_span!("refresh", resource, links = refreshes.len());
        let running = tokio::spawn({
            let (refresher, refreshes) = (self.refresher.clone(), refreshes.clone());
            async move { refresher.run_many(refreshes, permit).await }.instrument(span)
        });
        let Ok(ended) = running.await else {
            tracing::error!(
                code = "panic",
                links = refreshes.len(),
                "an answer for many links panicked; each is asked for alone, and this is a defect to report"
            );
            for refresh in refreshes {
                self.refresher.trust.keep_alone(refresh.resource, &refresh.link_id);
                self.settle(refresh, Outcome::Released, None).await;
            }
            return;
        };
        let mut settling = JoinSet::new();
        for (refresh, result) in ended {
            let worker = self.clone();
            settling.spawn(async move { worker.end(refresh, result).await });
        }
        settling.join_all().await;
    }

    /// Runs a refresh that goes alone.
    async fn run_one(&self, refresh: Refresh, permit: Permit) {
        let span = tracing::debug_span!(
            "refresh",
            link = refresh.link_id.log_tag(),
            resource = refresh.resource.name,
            attempt = refresh.attempts + 1,
            versions = Empty,
            code = Empty,
        );
        let running = tokio::spawn({
            let (refresher, refresh) = (self.refresher.clone(), refresh.clone());
            async move {
                let result = refresher.run(&refresh, Some(permit)).await;
                match &result {
                    Ok(kept) => tracing::Span::current().record("versions", kept.versions),
                    Err(error) => tracing::Span::current().record("code", error.code()),
                };
                result
            }
            .instrument(span)
        });
        if let Ok(result) = running.await {
            return self.end(refresh, result).await;
        }
        tracing::error!(
            code = "panic",
            link = refresh.link_id.log_tag(),
            resource = refresh.resource.name,
            "the refresh panicked; it is tried again, and this is a defect to report"
        );
        let now = self.clock.now();
        let outcome = Outcome::Postponed { code: "panic", at: now, until: now + Duration::from_mins(1) };
        self.settle(refresh, outcome, None).await;
    }

    /// Counts what a refresh came to, and puts one that failed back into the queue.
    async fn end(&self, refresh: Refresh, result: Result<Kept, Error>) {
        let resource = refresh.resource.name;
        match result {
            Ok(kept) => {
                metrics::counter!("vinculo_refreshes_total", "resource" => resource, "outcome" => "ok").increment(1);
                if kept.late > 0 {
                    metrics::counter!("vinculo_late_answers_total", "resource" => resource).increment(kept.late as u64);
                }
                tracing::debug!(link = refresh.link_id.log_tag(), resource, versions = kept.versions, "refreshed");
                self.free_those_that_failed_alike(&refresh).await;
            }
            Err(error) => {
                outcome::log(&refresh, &error);
                let refusal_wait = |failure: &Failure| self.refusal_wait(&refresh, failure);
                let outcome = outcome::of_failure(&error, refresh.attempts, self.clock.now(), refusal_wait);
                self.settle(refresh, outcome, if let Error::Belvo(failure) = error { Some(failure) } else { None })
                    .await;
            }
        }
    }

    /// Makes everything due that failed for refused keys, each time these are good again.
    async fn try_mended_keys(&self) {
        let trying = async {
            loop {
                self.refresher.client.until_keys_are_mended().await;
                for resource in resources::ALL {
                    self.try_again(resource, Code::ApiAuth).await;
                }
            }
        };
        self.shutdown.run_until_cancelled(trying).await;
    }

    /// When this refresh succeeds after the account was refused, or Belvo had failed for long, everything that came to
    /// nothing for that reason is due at once. Other refusals belong to one link each, and wait.
    async fn free_those_that_failed_alike(&self, refresh: &Refresh) {
        let resource = refresh.resource;
        let ended = self.refusals.end(resource.name, &refresh.link_id);
        let is_over_for_all = |code: &Code| {
            // What an institution does is no matter of other links.
            let is_of_belvo = !matches!(code, Code::InstitutionDown | Code::InstitutionRefuses);
            *code == OF_THE_ACCOUNT
                || is_of_belvo && (code.decision(), code.trouble()) == (Decision::Retry, Trouble::Down)
        };
        for code in ended.into_iter().filter(is_over_for_all) {
            self.try_again(resource, code).await;
        }
    }

    async fn try_again(&self, resource: &'static Resource, code: Code) {
        let now = self.clock.now();
        match self.refresher.store.write(move |tx| queue::try_again(tx, resource, code, now)).await {
            Ok(0) => {}
            Ok(refreshes) => {
                tracing::info!(
                    code = code.name(),
                    resource = resource.name,
                    refreshes,
                    "one came through after all; those that failed alike are asked for"
                );
                self.queue.announce();
            }
            // They are tried again in their own time.
            Err(error) => tracing::warn!(code = error.code(), "failed refreshes wait longer than needed: {error}"),
        }
    }

    /// How long a refresh waits that is refused, or has failed for long.
    fn refusal_wait(&self, refresh: &Refresh, failure: &Failure) -> Duration {
        let wait = failure.delay(refresh.attempts, &mut rand::rng());
        // Anybody can make up such links, so they are not counted among the refused; their class has little budget
        // anyway.
        if refresh.class() == Class::Unknown {
            return wait;
        }
        let (resource, why, now) = (refresh.resource.name, (failure.code, wait), self.clock.now());
        self.refusals.wait(resource, &refresh.link_id, why, now, || self.refresher.client.usage())
    }

    /// Gives the refresh back, however long that takes; its link is told what went wrong. While it cannot be given back
    /// nobody else can have it: a full disk that is freed must not need a restart.
    async fn settle(&self, refresh: Refresh, outcome: Outcome, failure: Option<Failure>) {
        let mut backoff = Backoff::new(QUEUE_PAUSE, LONGEST_QUEUE_PAUSE);
        let is_wanted = loop {
            let error = match self.try_settle(&refresh, outcome, failure.as_ref()).await {
                Ok(is_wanted) => break is_wanted,
                Err(error) => error,
            };
            let pause = backoff.next_wait();
            if pause == QUEUE_PAUSE {
                tracing::error!(
                    code = error.code(),
                    resource = refresh.resource.name,
                    "a refresh could not be given back, which is tried until it can: {error}"
                );
            }
            // An error of this very write would come again and again, and other refreshes need this worker.
            if error.is_about_one_write() && pause == LONGEST_QUEUE_PAUSE {
                return self.let_go(refresh, error.code()).await;
            }
            if self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                // The next start frees what this process held.
                return;
            }
        };
        if !is_wanted {
            self.refusals.forget(refresh.resource.name, &refresh.link_id);
        }
        if let Outcome::Postponed { code, .. } | Outcome::Blocked { code, .. } = outcome {
            let resource = refresh.resource.name;
            metrics::counter!("vinculo_refreshes_total", "resource" => resource, "outcome" => code).increment(1);
        }
    }

    /// Gives the refresh back and writes nothing else, because a write that also said what went wrong has failed for
    /// good.
    async fn let_go(&self, refresh: Refresh, code: &'static str) {
        let at = self.clock.now();
        let outcome = Outcome::Postponed { code, at, until: at + patience(refresh.attempts, &mut rand::rng()) };
        let (link_id, resource) = (refresh.link_id.clone(), refresh.resource);
        let given_back = self.refresher.store.write(move |tx| queue::settle(tx, &refresh, outcome)).await;
        if let Err(error) = given_back {
            tracing::error!(code = error.code(), "a refresh is held until the next start: {error}");
            return;
        }
        metrics::counter!("vinculo_refreshes_total", "resource" => resource.name, "outcome" => code).increment(1);
        // If this is the write that fails, a link that was paused meanwhile is fetched once more.
        let held = self.refresher.store.write(move |tx| links::hold(tx, &link_id, Some(resource))).await;
        if let Err(error) = held {
            tracing::warn!(code = error.code(), "a pause of a link does not hold for a refresh of it: {error}");
        }
    }

    /// Gives the refresh back, and whether it is wanted again.
    async fn try_settle(
        &self,
        refresh: &Refresh,
        outcome: Outcome,
        failure: Option<&Failure>,
    ) -> Result<bool, store::Error> {
        let (refresh, failure) = (refresh.clone(), failure.cloned());
        let write = move |tx: &store::Tx<'_>| {
            let is_ours = queue::settle(tx, &refresh, outcome)?;
            let (at, is_news) = match (outcome, failure.as_ref().map(|failure| failure.kind)) {
                (Outcome::Blocked { at, .. }, Some(_)) | (Outcome::Postponed { at, .. }, Some(Decision::Refused)) => {
                    (Some(at), true)
                }
                // Belvo may forget a link for a moment.
                (Outcome::Postponed { at, .. }, Some(Decision::Gone)) => (Some(at), refresh.attempts >= GONE_AFTER),
                _ => (None, false),
            };
            if let (true, true, Some(at), Some(failure)) = (is_ours, is_news, at, &failure) {
                links::note_failure(tx, &refresh.link_id, failure, at)?;
            }
            // The link may have been paused while this ran.
            links::hold(tx, &refresh.link_id, Some(refresh.resource))?;
            let state = queue::State::of(tx, &refresh.link_id, refresh.resource)?;
            Ok(state.is_some_and(|state| state.due_at.is_some() || state.is_leased))
        };
        self.refresher.store.write(write).await
    }
}

/// What a request needs to start.
struct Start {
    /// Somebody to run it.
    place: OwnedSemaphorePermit,
    /// Its place in the budget.
    permit: Permit,
}

/// A place of the first of `places` that has one.
async fn one_of(places: &[Arc<Semaphore>]) -> OwnedSemaphorePermit {
    let mut waiting = JoinSet::new();
    for places in places {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return place;
        }
        waiting.spawn(Arc::clone(places).acquire_owned());
    }
    match waiting.join_next().await {
        Some(Ok(Ok(place))) => place,
        // Nobody closes them.
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Timestamp;
    use crate::fetch::trust::Trust;
    use crate::link_id::LinkId;
    use crate::refresh::Inspections;
    use crate::resources::owners;
    use crate::store::{Store, args};

    fn link(n: u32) -> LinkId {
        format!("{n:08}-0000-4000-8000-000000000000").parse().unwrap()
    }

    struct Place {
        worker: Worker,
        _folder: tempfile::TempDir,
    }

    impl Place {
        async fn new(client: crate::belvo::Client) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let clock = Clock::from_fn(|| Timestamp::from_micros(1_000_000));
            let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
            let refresher = Refresher {
                client,
                store,
                confirm_after: Duration::from_hours(1),
                inspections: Inspections::default(),
                trust: Trust::new(100),
            };
            let (settled, refusals) = (watch::Sender::new(()), Refusals::default());
            let worker = Worker { refresher, queue, clock, settled, refusals, shutdown: CancellationToken::new() };
            Self { worker, _folder: folder }
        }

        /// A claimed refresh of each of so many links.
        async fn claimed(&self, links: u32) -> Vec<Refresh> {
            let mark = move |tx: &store::Tx<'_>| {
                let at = Timestamp::from_micros(0);
                (0..links).try_for_each(|n| queue::mark(tx, &link(n), &owners::RESOURCE, queue::Trigger::Webhook, at))
            };
            self.worker.refresher.store.write(mark).await.unwrap();
            let request = ClaimRequest {
                lane: Lane::Urgent,
                is_reversed: false,
                requests: usize::try_from(links).unwrap(),
                fit: Box::new(|_, _| 1),
            };
            self.worker.queue.claim(request).await.unwrap().requests.into_iter().flatten().collect()
        }

        async fn count(&self, condition: &str) -> i64 {
            let sql = format!("SELECT count(*) FROM refreshes WHERE {condition}");
            let read = move |tx: &store::Tx<'_>| tx.one(&sql, args![], |row| row.int(0));
            self.worker.refresher.store.read(read).await.unwrap().unwrap()
        }
    }

    fn nobody() -> crate::belvo::Client {
        scripted::client("127.0.0.1:9".parse().unwrap())
    }

    #[tokio::test]
    async fn a_refresh_that_cannot_be_given_back_is_given_back_as_soon_as_it_can() {
        let place = Place::new(nobody()).await;
        let refresh = place.claimed(1).await.remove(0);
        let rename = |from: &'static str, to: &'static str| {
            let sql = format!("ALTER TABLE {from} RENAME TO {to}");
            place.worker.refresher.store.write(move |tx| tx.execute(&sql, args![]))
        };
        // As when the disk is full: what the failure is counted in is not there.
        rename("failures", "gone").await.unwrap();
        let now = place.worker.clock.now();
        let outcome = Outcome::Postponed { code: "timeout", at: now, until: now };
        let mut settling = std::pin::pin!(place.worker.settle(refresh, outcome, None));
        tokio::select! {
            biased;
            () = &mut settling => panic!("it could not be given back"),
            // The write of the first try is on its way, before that of whoever frees the disk.
            () = std::future::ready(()) => {}
        }
        rename("gone", "failures").await.unwrap();
        assert_eq!(place.count("lease IS NOT NULL").await, 1);
        tokio::time::timeout(Duration::from_secs(30), settling).await.expect("it is tried again");
        assert_eq!(place.count("lease IS NULL AND due_at IS NOT NULL AND last_error_code = 'timeout'").await, 1);
    }

    #[tokio::test]
    async fn what_belvo_refuses_or_fails_at_for_long_is_postponed_and_one_that_comes_through_frees_all() {
        for (status, said, attempts, code, waits) in [
            (403, r#"[{"code":"access_to_resource_denied"}]"#, 0, "api_forbidden", "6000000 AND 7250000"),
            (500, r#"[{"code":"unexpected_error"}]"#, 99, "api_down", "49000000 AND 61000000"),
        ] {
            let calls = std::sync::atomic::AtomicU32::new(0);
            let script = Script::start(move |_| match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0..=2 => scripted::json(status, said),
                _ => scripted::json(200, r#"{"count":0,"next":null,"results":[]}"#),
            })
            .await;
            let place = Place::new(script.client()).await;
            for mut refresh in place.claimed(3).await {
                refresh.attempts = attempts;
                let permit = place.worker.refresher.client.budget().acquire(Class::Urgent).await;
                place.worker.run_one(refresh, permit).await;
            }
            let waiting = format!(
                "lease IS NULL AND blocked_reason IS NULL AND last_error_code = '{code}' AND due_at BETWEEN {waits}"
            );
            assert_eq!(place.count(&waiting).await, 3, "within the minute, however it came to nothing");
            // Its turn has come.
            let free = "UPDATE refreshes SET due_at = 0 WHERE link_id = $1";
            place.worker.refresher.store.write(move |tx| tx.execute(free, args![&link(1)])).await.unwrap();
            let request = ClaimRequest { lane: Lane::Urgent, is_reversed: false, requests: 9, fit: Box::new(|_, _| 1) };
            let mut claimed = place.worker.queue.claim(request).await.unwrap().requests;
            assert_eq!(claimed.len(), 1);
            let permit = place.worker.refresher.client.budget().acquire(Class::Urgent).await;
            place.worker.run_one(claimed.remove(0).remove(0), permit).await;
            let freed = format!("last_error_code = '{code}' AND due_at = 1000000");
            assert_eq!(place.count(&freed).await, 2, "{code}");
        }
    }
}
