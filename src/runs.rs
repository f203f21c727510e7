//! What somebody asked for: begun, followed and kept on record.
//!
//! *Takes* work that a person ordered. *Gives* a [`Run`], which tells at any time how far it has come, also to those who
//! ask over the admin listener. *Promises* that each run is on record before it begins, and what came of it when it has
//! ended, however that was; a run that a crash cut off is `interrupted` from the next start on. *Not here*: what the work
//! is; see [`crate::operations`]. The schedule's runs are its own, and are only read here.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Timestamp};
use crate::store::{Error, Row, Store, Tx, args};

/// How long runs stay on record.
const KEEP: Duration = Duration::from_hours(90 * 24);

/// What kind of work a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Refreshes of some links.
    Refresh,
    /// Institutions that Belvo reads again.
    Recollect,
    /// A link that Belvo deletes.
    Delete,
    /// A publish of what changed.
    Publish,
    /// A publish of everything.
    Rebuild,
    /// Features as of a date.
    Features,
    /// A comparison with Belvo's list of links.
    SyncLinks,
    /// Webhooks that are read again.
    Replay,
    /// A job, between its slots.
    Job,
}

impl Kind {
    /// The word on record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Recollect => "recollect",
            Self::Delete => "delete",
            Self::Publish => "publish",
            Self::Rebuild => "rebuild",
            Self::Features => "features",
            Self::SyncLinks => "sync-links",
            Self::Replay => "replay",
            Self::Job => "job",
        }
    }
}

/// How the order came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A command that does the work itself.
    Command,
    /// The admin listener.
    Api,
}

impl Reason {
    /// The word on record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Api => "api",
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many things it is about; absent while nobody knows.
    pub total: Option<u64>,
    /// How many are done.
    pub done: u64,
    /// How many failed, by stable code.
    pub failed: BTreeMap<String, u64>,
    /// The snapshot that it published; absent when nothing had changed, or it is not about that.
    pub snapshot: Option<u32>,
}

impl Progress {
    /// How many things have come to an end, good or bad.
    pub fn ended(&self) -> u64 {
        self.done + self.failed.values().sum::<u64>()
    }
}

/// A run, as `/v1/runs` and `--json` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Names it in `/v1/runs/{id}`.
    pub id: String,
    /// `refresh`, `recollect`, `delete`, `publish`, `rebuild`, `sync-links`, `replay` or `job`.
    pub kind: String,
    /// The job's name.
    pub name: Option<String>,
    /// `command`, `api`, or the schedule's word: `schedule` or `catch-up`.
    pub reason: String,
    /// When it began.
    pub started_at: String,
    /// When it ended; absent while it goes on.
    pub finished_at: Option<String>,
    /// Milliseconds from the one to the other; absent while it goes on.
    pub duration_ms: Option<u64>,
    /// `done`, `partly`, `failed`, `interrupted`, `skipped`, or the code of a failure; absent while it goes on.
    pub outcome: Option<String>,
    /// How far it has come.
    #[serde(flatten)]
    pub progress: Progress,
    /// Why it failed, for a person.
    pub message: Option<String>,
}

/// Why the work of a run came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Failed {
    /// The stable code.
    pub code: &'static str,
    /// What happened, without personal data.
    pub message: String,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

/// The runs of this process. Cheap to clone.
#[derive(Clone)]
pub struct Runs {
    store: Store,
    clock: Clock,
    going: Arc<Mutex<HashMap<i64, watch::Receiver<Progress>>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Runs {
    /// Runs of the state's owner; what an earlier owner left unfinished was interrupted. Each is one of `tasks` and is
    /// dropped at `shutdown`.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::NotDurable`].
    pub async fn open(
        store: Store,
        clock: Clock,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let now = clock.now();
        let end = move |tx: &Tx<'_>| {
            tx.execute("DELETE FROM runs WHERE started_at < $1", args![earlier(now, KEEP)])?;
            let sql = "UPDATE runs SET finished_at = $1, outcome = 'interrupted' WHERE finished_at IS NULL";
            tx.execute(sql, args![now])
        };
        store.write(end).await?;
        Ok(Self { store, clock, going: Arc::default(), tasks, shutdown })
    }

    /// Puts a run on record, begins its `work`, and gives its number. `work` tells of its progress through what it is
    /// given.
    ///
    /// # Errors
    /// When it cannot be put on record; then nothing is begun.
    pub async fn start<F>(
        &self,
        kind: Kind,
        name: Option<String>,
        reason: Reason,
        work: impl FnOnce(watch::Sender<Progress>) -> F,
    ) -> Result<i64, Error>
    where
        F: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let now = self.clock.now();
        let begin = move |tx: &Tx<'_>| {
            let sql = "INSERT INTO runs (kind, name, reason, started_at) VALUES ($1, $2, $3, $4) RETURNING run_id";
            tx.one(sql, args![kind.name(), name.as_deref(), reason.name(), now], |row| row.int(0))
        };
        let number = self.store.write(begin).await?.ok_or(Error::Unreadable("a run"))?;
        tracing::info!(run = number, kind = kind.name(), reason = reason.name(), "a run was ordered");
        let progress = watch::Sender::new(Progress::default());
        self.lock().insert(number, progress.subscribe());
        let (runs, shutdown, working) = (self.clone(), self.shutdown.clone(), tokio::spawn(work(progress.clone())));
        self.tasks.spawn(async move {
            let abort = working.abort_handle();
            let outcome = match shutdown.run_until_cancelled(working).await {
                Some(Ok(outcome)) => Some(outcome),
                Some(Err(_panicked)) => {
                    let message = "the work ended unexpectedly: please report it".to_owned();
                    Some(Err(Failed { code: "panicked", message }))
                }
                None => None,
            };
            abort.abort();
            let reached = progress.borrow().clone();
            if let Err(error) = runs.record(number, kind, outcome, reached).await {
                tracing::error!(code = error.code(), run = number, "what came of a run could not be kept: {error}");
            }
            runs.lock().remove(&number);
            // Only now, so that whoever waits for the end finds it on record.
            drop(progress);
        });
        Ok(number)
    }

    async fn record(
        &self,
        number: i64,
        kind: Kind,
        outcome: Option<Result<(), Failed>>,
        reached: Progress,
    ) -> Result<(), Error> {
        let (word, message) = match outcome {
            Some(Ok(())) if reached.failed.is_empty() => ("done", None),
            Some(Ok(())) if reached.done > 0 => ("partly", None),
            Some(Ok(())) => ("failed", None),
            Some(Err(Failed { code, message })) => (code, Some(message)),
            None => ("interrupted", None),
        };
        metrics::counter!("vinculo_runs_total", "kind" => kind.name(), "outcome" => word).increment(1);
        match &message {
            Some(message) => tracing::warn!(run = number, kind = kind.name(), code = word, "a run failed: {message}"),
            None => tracing::info!(run = number, kind = kind.name(), outcome = word, "a run ended"),
        }
        let now = self.clock.now();
        let failed = (!reached.failed.is_empty()).then(|| serde_json::json!(reached.failed).to_string());
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (total, done, snapshot) = (reached.total.map(count), count(reached.done), reached.snapshot.map(i64::from));
        let end = move |tx: &Tx<'_>| {
            tx.execute(
                "UPDATE runs SET finished_at = $2, outcome = $3, total = $4, done = $5, failed = $6, snapshot = $7, \
                 message = $8 WHERE run_id = $1",
                args![number, now, word, total, done, failed.as_deref(), snapshot, message.as_deref()],
            )
        };
        self.store.write(end).await.map(drop)
    }

    /// The run called `id`, as it stands; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn get(&self, id: &str) -> Result<Option<Run>, Error> {
        let name = id.to_owned();
        let found = self.store.read(move |tx| get(tx, &name)).await?;
        Ok(found.map(|run| self.brought_up_to_date(run)))
    }

    /// Like [`Runs::get`], once there is news of it, or after `patience` without any.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn get_news(&self, id: &str, patience: Duration) -> Result<Option<Run>, Error> {
        let going = id.parse().ok().and_then(|number: i64| self.lock().get(&number).cloned());
        if let Some(mut going) = going {
            // An error is its end.
            let news = tokio::time::timeout(patience, going.changed());
            let _ = self.shutdown.run_until_cancelled(news).await;
        }
        self.get(id).await
    }

    /// What `run`, read from the record, has reached meanwhile.
    pub fn brought_up_to_date(&self, mut run: Run) -> Run {
        let going = run.id.parse().ok().and_then(|number: i64| self.lock().get(&number).cloned());
        if let (Some(going), None) = (going, &run.finished_at) {
            run.progress = going.borrow().clone();
        }
        run
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i64, watch::Receiver<Progress>>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which runs are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this job.
    pub name: Option<String>,
}

/// All runs on record, the schedule's too, as rows of one form.
const ALL: &str = "SELECT CAST(run_id AS TEXT) AS id, kind, name, reason, started_at, finished_at, outcome, total, done, failed, \
     snapshot, message FROM runs UNION ALL SELECT job || '@' || CAST(slot_at AS TEXT), 'job', job, reason, started_at, \
     finished_at, outcome, NULL, coalesce(item_count, 0), NULL, NULL, NULL FROM job_runs WHERE reason <> 'first-start'";

/// At most `limit` runs, the newest first, from after the run `after` on. Gives them and, when there are more, the `after`
/// of the next page.
///
/// # Errors
/// [`Error::Database`].
pub fn list(
    tx: &Tx<'_>,
    filter: &Filter,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Run>, Option<String>), Error> {
    let last = match after {
        Some(id) => {
            tx.one(&format!("SELECT started_at FROM ({ALL}) AS every WHERE id = $1"), args![id], |row| row.int(0))?
        }
        None => None,
    };
    let sql = format!(
        "SELECT * FROM ({ALL}) AS every WHERE (started_at < $1 OR (started_at = $1 AND id < $2)) \
         AND (CAST($3 AS TEXT) IS NULL OR kind = $3) AND (CAST($4 AS TEXT) IS NULL OR name = $4) \
         ORDER BY started_at DESC, id DESC LIMIT $5"
    );
    let more = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let (kind, name) = (filter.kind.as_deref(), filter.name.as_deref());
    let mut runs = tx.all(&sql, args![last.unwrap_or(i64::MAX), after.unwrap_or_default(), kind, name, more], read)?;
    let has_more = runs.len() > limit;
    runs.truncate(limit);
    let next = runs.last().filter(|_| has_more).map(|run| run.id.clone());
    Ok((runs, next))
}

/// The run called `id` as it is on record.
///
/// # Errors
/// [`Error::Database`].
pub fn get(tx: &Tx<'_>, id: &str) -> Result<Option<Run>, Error> {
    tx.one(&format!("SELECT * FROM ({ALL}) AS every WHERE id = $1"), args![id], read)
}

/// The last run of the job called `name` that was not passed over.
///
/// # Errors
/// [`Error::Database`].
pub fn last_of_job(tx: &Tx<'_>, name: &str) -> Result<Option<Run>, Error> {
    let sql = format!(
        "SELECT * FROM ({ALL}) AS every WHERE kind = 'job' AND name = $1 AND coalesce(outcome, '') <> 'skipped' \
         ORDER BY started_at DESC, id DESC LIMIT 1"
    );
    tx.one(&sql, args![name], read)
}

fn read(row: &Row<'_>) -> Result<Run, Error> {
    let (started_at, finished_at) = (row.at(4)?, row.opt_at(5)?);
    let count = |column| row.opt_int(column).map(|count| count.map(|count| u64::try_from(count).unwrap_or(0)));
    let failed = row.opt_text(9)?.map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(&text));
    Ok(Run {
        id: row.text(0)?,
        kind: row.text(1)?,
        name: row.opt_text(2)?,
        reason: row.text(3)?,
        started_at: started_at.to_string(),
        finished_at: finished_at.map(|at| at.to_string()),
        duration_ms: finished_at.map(|at| u64::try_from(at.since(started_at).as_millis()).unwrap_or(u64::MAX)),
        outcome: row.opt_text(6)?,
        progress: Progress {
            total: count(7)?,
            done: count(8)?.unwrap_or_default(),
            failed: failed.map_err(|_| Error::Unreadable("the failures of a run"))?,
            snapshot: row.opt_int(10)?.and_then(|number| u32::try_from(number).ok()),
        },
        message: row.opt_text(11)?,
    })
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_micros(at.as_micros().saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}
