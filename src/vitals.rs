//! Whether this process does its work: the tasks that matter run, and the state answers.
//!
//! *Takes* the tasks, each under its name, and a beat whenever the state has answered. *Gives* what is wrong, for the
//! service manager's watchdog and for readiness. *Not here*: what stands in the way from outside; see
//! [`crate::problems`]. A process whose disk is full or whose Belvo is down is alive.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::problems::Problems;

/// Stands once a task has ended that should go on: only a restart helps.
pub const TASK_ENDED: &str = "task_ended";

/// A state that gives no answer for so long, not even an error, is stuck. An erasure in a large state may keep its
/// writer for minutes.
const ANSWERS_WITHIN: Duration = Duration::from_mins(5);

/// The signs of life of one daemon. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Vitals(Arc<Mutex<Signs>>);

#[derive(Debug)]
struct Signs {
    ended: Vec<&'static str>,
    answered: Instant,
}

impl Vitals {
    /// Of a daemon that has just begun.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Signs { ended: Vec::new(), answered: Instant::now() })))
    }

    /// `task`, which is called `name`: when it ends or panics before `shutdown`, that stands among `problems` and is
    /// told.
    pub async fn watch(
        self,
        name: &'static str,
        task: impl Future<Output = ()>,
        problems: Problems,
        shutdown: CancellationToken,
    ) {
        // A panic drops it too.
        let _ending = Ending { vitals: self, name, problems, shutdown };
        task.await;
    }

    /// The state has answered, be it with an error that may pass.
    pub fn beat(&self) {
        self.signs().answered = Instant::now();
    }

    /// When it last did.
    #[cfg(test)]
    pub(crate) fn answered_at(&self) -> Instant {
        self.signs().answered
    }

    /// What is wrong, in words; `None` while all is well.
    pub fn complaint(&self) -> Option<String> {
        let signs = self.signs();
        if let Some(name) = signs.ended.first() {
            return Some(format!("the task {name} has ended"));
        }
        let silent = signs.answered.elapsed();
        (silent > ANSWERS_WITHIN).then(|| format!("the state gave no answer for {} s", silent.as_secs()))
    }

    fn signs(&self) -> std::sync::MutexGuard<'_, Signs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Vitals {
    fn default() -> Self {
        Self::new()
    }
}

/// Notes the end of a task when it is dropped.
struct Ending {
    vitals: Vitals,
    name: &'static str,
    problems: Problems,
    shutdown: CancellationToken,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.shutdown.is_cancelled() {
            self.vitals.signs().ended.push(self.name);
            self.problems.raise(TASK_ENDED);
            tracing::error!(
                code = TASK_ENDED,
                task = self.name,
                "a task ended that should not: restart the daemon, which loses nothing, and report this"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_one_that_ends_at_the_shutdown_is_not() {
        let (vitals, problems, shutdown) = (Vitals::new(), Problems::default(), CancellationToken::new());
        let watch = |name, task| tokio::spawn(vitals.clone().watch(name, task, problems.clone(), shutdown.clone()));
        let until_shutdown: Task = Box::pin(shutdown.clone().cancelled_owned());
        let orderly = watch("orderly", until_shutdown);
        assert_eq!(vitals.complaint(), None);
        let panicking: Task = Box::pin(async { panic!("on purpose") });
        assert!(watch("worker", panicking).await.is_err());
        assert_eq!(vitals.complaint().as_deref(), Some("the task worker has ended"));
        assert_eq!(problems.standing(), [TASK_ENDED]);
        shutdown.cancel();
        orderly.await.unwrap();
        assert_eq!(vitals.signs().ended, ["worker"]);
    }
}
