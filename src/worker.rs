//! Takes refreshes off the queue and runs them, as many at a time as the configuration says.
//!
//! *Promises* that a refresh that fails is tried again, waits for its user or stops, as its failure says, and holds up no
//! other; that a panic in one is a failure of that one; and that each failure is logged once, here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::belvo::Decision;
use crate::clock::Clock;
use crate::links;
use crate::queue::{self, Outcome, Queue, Refresh};
use crate::refresh::{Error, Refresher};
use crate::store;

/// How long running refreshes have to end when the program stops; what does not is done again after the next start.
const DRAIN: Duration = Duration::from_secs(8);

/// How long to wait after the queue itself failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Runs refreshes until `shutdown`. `settled` is told of each one that has ended.
pub async fn run(
    refresher: Refresher,
    queue: Queue,
    clock: Clock,
    workers: usize,
    settled: watch::Sender<()>,
    shutdown: CancellationToken,
) {
    let (claimed, waiting) = mpsc::channel(workers);
    let waiting = Arc::new(Mutex::new(waiting));
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let worker = Worker { refresher: refresher.clone(), clock: clock.clone(), settled: settled.clone() };
        tasks.spawn(worker.run_claimed(Arc::clone(&waiting)));
    }
    tokio::select! {
        () = claim_until_closed(&refresher, &queue, &clock, workers, settled.subscribe(), claimed) => {}
        () = shutdown.cancelled() => {}
    }
    // The sender is gone now: what was claimed is run to its end, or done again after the next start.
    if tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(
            code = "stopped_early",
            "refreshes were still running; they are done again after the next start"
        );
    }
}

/// Claims refreshes that are due, a few ahead of the workers, so that none waits for the commit of a claim.
async fn claim_until_closed(
    refresher: &Refresher,
    queue: &Queue,
    clock: &Clock,
    workers: usize,
    mut settled: watch::Receiver<()>,
    claimed: mpsc::Sender<Refresh>,
) {
    let mut news = queue.news();
    loop {
        refresher.client.until_open().await;
        news.mark_unchanged();
        let batch = match queue.claim(workers).await {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(code = error.code(), "the queue could not be read: {error}");
                tokio::time::sleep(QUEUE_PAUSE).await;
                continue;
            }
        };
        let is_empty = batch.is_empty();
        for refresh in batch {
            if claimed.send(refresh).await.is_err() {
                return;
            }
        }
        // A refresh that ends may leave its successor behind: to be tried again, or wanted again while it ran.
        let mut is_waiting = is_empty;
        while is_waiting {
            settled.mark_unchanged();
            let next_due = queue.next_due().await.ok().flatten();
            let until_due = async {
                match next_due {
                    Some(due) => tokio::time::sleep(due.since(clock.now()).max(Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = news.changed() => is_waiting = false,
                () = until_due => is_waiting = false,
                Ok(()) = settled.changed() => {}
            }
        }
    }
}

struct Worker {
    refresher: Refresher,
    clock: Clock,
    settled: watch::Sender<()>,
}

impl Worker {
    async fn run_claimed(self, waiting: Arc<Mutex<mpsc::Receiver<Refresh>>>) {
        loop {
            let Some(refresh) = waiting.lock().await.recv().await else { return };
            self.run_next(refresh).await;
            self.settled.send_replace(());
        }
    }

    async fn run_next(&self, refresh: Refresh) {
        let resource = refresh.resource.name;
        let running = tokio::spawn({
            let (refresher, refresh) = (self.refresher.clone(), refresh.clone());
            async move { refresher.run(&refresh).await }
        });
        let (outcome, failure) = match running.await {
            Ok(Ok(kept)) => {
                metrics::counter!("vinculo_refreshes_total", "resource" => resource, "outcome" => "ok").increment(1);
                if kept.late > 0 {
                    metrics::counter!("vinculo_late_answers_total", "resource" => resource).increment(kept.late as u64);
                }
                tracing::debug!(link_id = %refresh.link_id, resource, versions = kept.versions, "refreshed");
                return;
            }
            Ok(Err(error)) => {
                let outcome = self.failed(&refresh, &error);
                (outcome, if let Error::Belvo(failure) = error { Some(failure) } else { None })
            }
            Err(_) => {
                tracing::error!(code = "panic", link_id = %refresh.link_id, resource, "the refresh panicked; it is tried again, and this is a defect to report");
                let now = self.clock.now();
                (Outcome::Postponed { code: "panic", at: now, until: now + Duration::from_mins(1) }, None)
            }
        };
        let (Outcome::Postponed { code, .. } | Outcome::Blocked { code, .. }) = outcome else { return };
        metrics::counter!("vinculo_refreshes_total", "resource" => resource, "outcome" => code).increment(1);
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
        let link_id = &refresh.link_id;
        let resource = refresh.resource.name;
        let attempt = refresh.attempts + 1;
        match error {
            Error::Belvo(failure) => {
                let delay = failure.delay(refresh.attempts, &mut rand::rng());
                let request_id = failure.request_id.as_deref();
                match failure.kind {
                    Decision::AskUser | Decision::Never => {
                        tracing::warn!(code = failure.code, %link_id, resource, request_id, "{failure}");
                        Outcome::Blocked { code: failure.code, at }
                    }
                    // Belvo may forget a link for a moment: it is asked again before its refreshes stop.
                    Decision::Gone if refresh.attempts >= 2 => {
                        tracing::warn!(code = failure.code, %link_id, resource, request_id, "{failure}");
                        Outcome::Blocked { code: failure.code, at }
                    }
                    Decision::Retry | Decision::RetryAfter(_) | Decision::Gone | Decision::Stop => {
                        if failure.is_worth_a_report(attempt) {
                            tracing::error!(code = failure.code, %link_id, resource, request_id, attempt, "{failure}; it goes on for long: report Belvo's request id to Belvo");
                        } else {
                            tracing::warn!(code = failure.code, %link_id, resource, request_id, attempt, "{failure}");
                        }
                        later(delay)
                    }
                }
            }
            Error::Incomplete => {
                tracing::info!(code = error.code(), %link_id, resource, attempt, "{error}; it is asked for again");
                later(Duration::from_secs(3 << refresh.attempts.min(4)))
            }
            Error::Foreign(_) => {
                tracing::error!(code = error.code(), %link_id, resource, attempt, "{error}; nothing of the list was kept, report it to Belvo");
                later(Duration::from_secs(48))
            }
            Error::Store(store::Error::Overtaken(_)) => {
                tracing::warn!(code = error.code(), %link_id, resource, "{error}");
                later(Duration::ZERO)
            }
            Error::Store(_) => {
                tracing::error!(code = error.code(), %link_id, resource, attempt, "{error}");
                later(Duration::from_secs(3 << refresh.attempts.min(4)))
            }
        }
    }
}
