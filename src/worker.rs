//! Takes refreshes off the queue and runs them, as many at a time as the configuration says.
//!
//! *Promises* that a refresh that fails is tried again, waits for its user or stops, as its failure says, and holds up no
//! other; that a panic in one is a failure of that one; and that each failure is logged once, here.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::belvo::{Class, Decision, Failure, Permit};
use crate::clock::Clock;
use crate::links;
use crate::queue::{self, Claimed, Lane, Outcome, Queue, Refresh, Wish};
use crate::records::Kept;
use crate::refresh::{Error, Refresher};
use crate::store;

/// How long running refreshes have to end when the program stops; what does not is done again after the next start.
const DRAIN: Duration = Duration::from_secs(8);

/// How long to wait after the queue itself failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// The part of the workers that only urgent requests occupy: a slow answer to another holds none of them up.
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
    let worker = Worker { refresher, queue, clock, settled };
    tokio::join!(
        worker.clone().serve(Lane::Urgent, vec![urgent, Arc::clone(&any)], shutdown.clone()),
        worker.clone().serve(Lane::Ordinary, vec![any], shutdown),
    );
}

#[derive(Clone)]
struct Worker {
    refresher: Refresher,
    queue: Queue,
    clock: Clock,
    settled: watch::Sender<()>,
}

impl Worker {
    /// Serves a lane: waits for a refresh that is due, then for somebody to run it, then for a place in the budget, and
    /// only then decides which refresh it is, so that nothing that was decided earlier is in the way of what is urgent.
    async fn serve(self, lane: Lane, places: Vec<Arc<Semaphore>>, shutdown: CancellationToken) {
        let mut running = JoinSet::new();
        let serving = async {
            let (mut news, mut settled) = (self.queue.news(), self.settled.subscribe());
            for turn in 1.. {
                self.refresher.client.until_open().await;
                self.until_due(lane, &mut news, &mut settled).await;
                let place = one_of(&places).await;
                let permit = self.refresher.client.budget().acquire(class(lane)).await;
                let leaves = self.more_leaves((place, permit), lane, &places);
                let is_reversed = lane == Lane::Ordinary && turn % LAST_FIRST == 0;
                match self.claim(lane, is_reversed, leaves.len()).await {
                    Ok(claimed) => self.start(claimed, leaves, &mut running),
                    Err(error) => {
                        for (_, permit) in leaves {
                            permit.unused();
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
            () = shutdown.cancelled() => {}
        }
        // What was claimed is run to its end, or done again after the next start.
        if tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await.is_err() {
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
    fn more_leaves(&self, first: Leave, lane: Lane, places: &[Arc<Semaphore>]) -> Vec<Leave> {
        let mut leaves = vec![first];
        while leaves.len() < AT_ONCE
            && let Some(place) = places.iter().find_map(|places| Arc::clone(places).try_acquire_owned().ok())
            && let Some(permit) = self.refresher.client.budget().try_acquire(class(lane))
        {
            leaves.push((place, permit));
        }
        leaves
    }

    fn claim(
        &self,
        lane: Lane,
        is_reversed: bool,
        requests: usize,
    ) -> impl Future<Output = Result<Claimed, store::Error>> + use<'_> {
        let trust = self.refresher.trust.clone();
        let fit = Box::new(move |link_id: &_, resource| trust.fit(link_id, resource));
        self.queue.claim(Wish { lane, is_reversed, requests, fit })
    }

    /// Starts what was claimed; permits that are left over were not used.
    fn start(&self, claimed: Claimed, leaves: Vec<Leave>, running: &mut JoinSet<()>) {
        for resource in claimed.due.iter().filter_map(|(name, due)| {
            let resource = crate::resources::Resource::by_name(name)?;
            self.refresher.trust.wants_check(resource, *due).then_some(resource)
        }) {
            let refresher = self.refresher.clone();
            running.spawn(async move { refresher.trust.check(&refresher.client, resource).await });
        }
        let mut requests = claimed.requests.into_iter();
        for (place, permit) in leaves {
            let Some(mut refreshes) = requests.next() else {
                permit.unused();
                continue;
            };
            let worker = self.clone();
            running.spawn(async move {
                match refreshes.pop() {
                    Some(refresh) if refreshes.is_empty() => worker.run_next(refresh, permit).await,
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

    async fn run_next(&self, refresh: Refresh, permit: Permit) {
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
            }
            Err(error) => {
                let outcome = self.failed(&refresh, &error);
                self.settle(refresh, outcome, if let Error::Belvo(failure) = error { Some(failure) } else { None })
                    .await;
            }
        }
    }

    /// Gives the refresh back; its link is told what stopped it.
    async fn settle(&self, refresh: Refresh, outcome: Outcome, failure: Option<Failure>) {
        let resource = refresh.resource.name;
        if let Outcome::Postponed { code, .. } | Outcome::Blocked { code, .. } = outcome {
            metrics::counter!("vinculo_refreshes_total", "resource" => resource, "outcome" => code).increment(1);
        }
        let settled = self.refresher.store.write(move |tx| {
            let is_ours = queue::settle(tx, &refresh, outcome)?;
            if let (true, Outcome::Blocked { at, .. }, Some(failure)) = (is_ours, outcome, &failure) {
                links::note_failure(tx, &refresh.link_id, failure, at)?;
            }
            // The link may have been paused while this ran.
            links::hold(tx, &refresh.link_id, Some(refresh.resource))
        });
        let settled = settled.await;
        if let Err(error) = settled {
            tracing::error!(
                code = error.code(),
                resource,
                "a refresh could not be given back, and is done again after a restart: {error}"
            );
        }
    }

    /// Logs the failure and decides what becomes of the refresh.
    fn failed(&self, refresh: &Refresh, error: &Error) -> Outcome {
        let at = self.clock.now();
        let later = |wait: Duration| Outcome::Postponed { code: error.code(), at, until: at + wait };
        let link = refresh.link_id.log_tag();
        let resource = refresh.resource.name;
        let attempt = refresh.attempts + 1;
        match error {
            Error::Belvo(failure) => {
                let delay = failure.delay(refresh.attempts, &mut rand::rng());
                let request_id = failure.request_id.as_deref();
                match failure.kind {
                    Decision::AskUser | Decision::Never => {
                        tracing::warn!(code = failure.code, link, resource, request_id, "{failure}");
                        Outcome::Blocked { code: failure.code, at }
                    }
                    // Belvo may forget a link for a moment: it is asked again before its refreshes stop.
                    Decision::Gone if refresh.attempts >= 2 => {
                        tracing::warn!(code = failure.code, link, resource, request_id, "{failure}");
                        Outcome::Blocked { code: failure.code, at }
                    }
                    Decision::Retry | Decision::RetryAfter(_) | Decision::Gone | Decision::Stop => {
                        if failure.is_worth_a_report(attempt) {
                            tracing::error!(
                                code = failure.code,
                                link,
                                resource,
                                request_id,
                                attempt,
                                "{failure}; it goes on for long: report Belvo's request id to Belvo"
                            );
                        } else {
                            tracing::warn!(code = failure.code, link, resource, request_id, attempt, "{failure}");
                        }
                        later(delay)
                    }
                }
            }
            Error::Alone => Outcome::Released,
            Error::Incomplete => {
                tracing::info!(code = error.code(), link, resource, attempt, "{error}; it is asked for again");
                later(Duration::from_secs(3 << refresh.attempts.min(4)))
            }
            Error::Foreign(_) => {
                tracing::error!(
                    code = error.code(),
                    link,
                    resource,
                    attempt,
                    "{error}; nothing of the list was kept, report it to Belvo"
                );
                later(Duration::from_secs(48))
            }
            Error::Store(store::Error::Overtaken(_)) => {
                tracing::warn!(code = error.code(), link, resource, "{error}");
                later(Duration::ZERO)
            }
            Error::Store(_) => {
                tracing::error!(code = error.code(), link, resource, attempt, "{error}");
                later(Duration::from_secs(3 << refresh.attempts.min(4)))
            }
        }
    }
}

/// Somebody to run a request, and its place in the budget.
type Leave = (OwnedSemaphorePermit, Permit);

fn class(lane: Lane) -> Class {
    match lane {
        Lane::Urgent => Class::Urgent,
        Lane::Ordinary => Class::Ordinary,
    }
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
