//! When to publish: once the record store has settled, and again after a failure.
//!
//! *Takes* a publisher, and news of changes. *Gives* news of what was published, and what stands in the way of it.
//! *Promises* that changes which go on and on are published all the same, and that a failure is tried again soon. *Not
//! here*: how a snapshot is made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Publisher, Scope, publish_in_background};
use crate::backoff::Backoff;
use crate::problems::Problems;

/// Stands while nothing can be published.
pub const PUBLISH_FAILED: &str = "publish_failed";

/// Wait after a first failure to publish; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(2);
pub(super) const LAST_RETRY: Duration = Duration::from_mins(1);

/// When to publish.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// This long after the last change,
    pub quiet: Duration,
    /// and at the latest this long after the first.
    pub max_wait: Duration,
}

/// Publishes when the record store has settled, until `shutdown`. `changed` tells of changes, and `published` of the
/// change that the latest snapshot has. `problems` hears of what stands in the way.
pub async fn run(
    publisher: Arc<Publisher>,
    pace: Pace,
    mut changed: watch::Receiver<()>,
    published: watch::Sender<i64>,
    problems: Problems,
    shutdown: CancellationToken,
) {
    let mut retry = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        changed.mark_unchanged();
        let wait = match publish_in_background(&publisher, Scope::Changed).await {
            Ok(manifest) => {
                problems.clear(PUBLISH_FAILED);
                retry.reset();
                // Told also when there was nothing new: readers then have all there is.
                published
                    .send_modify(|change| *change = manifest.map_or(*change, |manifest| manifest.built_from.change));
                Duration::MAX
            }
            Err(error) => {
                problems.raise(PUBLISH_FAILED);
                metrics::counter!("vinculo_publish_failures_total", "code" => error.code()).increment(1);
                let wait = retry.next_wait();
                tracing::error!(
                    code = error.code(),
                    retry_secs = wait.as_secs(),
                    "nothing was published, and readers see the last snapshot: {error}"
                );
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = changed.changed() => {
                // Whoever stops does not wait for a pause to pass: what is new is published after the next start.
                let _ = shutdown.run_until_cancelled(until_quiet(&mut changed, pace)).await;
            }
            () = shutdown.cancelled() => return,
        }
        if shutdown.is_cancelled() {
            return;
        }
    }
}

/// Waits until nothing changed for a while, or changes have gone on for long enough.
async fn until_quiet(changed: &mut watch::Receiver<()>, pace: Pace) {
    let latest = tokio::time::sleep(pace.max_wait);
    tokio::pin!(latest);
    loop {
        tokio::select! {
            () = &mut latest => return,
            () = tokio::time::sleep(pace.quiet) => return,
            Ok(()) = changed.changed() => {}
        }
    }
}
