//! What somebody asked for: begun, followed and kept on record.
//!
//! *Takes* work that a person ordered. *Gives* a [`Run`], which tells at any time how far it has come, also to those
//! who ask over the admin listener. *Promises* that each run is on record before it begins, and what came of it when it
//! has ended, however that was; a run that a crash cut off is `interrupted` from the next start on. *Not here*: what
//! the work is; see [`crate::operations`]. The schedule's runs are its own, and are only read here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::clock::{Clock, Timestamp};
use crate::store::{self, Error, Row, Store, Tx, args};

/// How long runs stay on record, those of jobs among them.
pub const KEEP: Duration = Duration::from_hours(90 * 24);

/// What came of a run is written again after so long when the state did not take it.
const RECORD_AGAIN: Duration = Duration::from_secs(2);

/// What kind of work a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Refreshes of some links.
    Refresh,
    /// Institutions that Belvo reads again.
    Recollect,
    /// A link that Belvo deletes.
    Delete,
    /// A link of which nothing is asked for any more.
    Untrack,
    /// One person, who is erased.
    Erase,
    /// A publish of what changed.
    Publish,
    /// A publish of everything.
    Rebuild,
    /// Features as of a date.
    Features,
    /// A row of features that a decision used, kept.
    Freeze,
    /// A comparison with Belvo's list of links.
    SyncLinks,
    /// Webhooks that are read again.
    Replay,
    /// A job, between its slots.
    Job,
}

impl Kind {
    /// Every kind, those that come most first.
    pub const ALL: [Self; 12] = [
        Self::Refresh,
        Self::Job,
        Self::Publish,
        Self::Rebuild,
        Self::Features,
        Self::Freeze,
        Self::Recollect,
        Self::Replay,
        Self::SyncLinks,
        Self::Delete,
        Self::Untrack,
        Self::Erase,
    ];

    /// The word on record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Recollect => "recollect",
            Self::Delete => "delete",
            Self::Untrack => "untrack",
            Self::Erase => "erase",
            Self::Publish => "publish",
            Self::Rebuild => "rebuild",
            Self::Features => "features",
            Self::Freeze => "freeze",
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
    /// The daemon itself, of what nobody has to order.
    Daemon,
}

impl Reason {
    /// The word on record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Api => "api",
            Self::Daemon => "daemon",
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// With what the work of a run says how far it has come. Cheap to clone.
#[derive(Clone)]
pub struct Report(watch::Sender<Progress>);

impl Report {
    /// It is about `count` things.
    pub fn total(&self, count: u64) {
        self.0.send_modify(|progress| progress.total = Some(count));
    }

    /// Of these, `count` are done.
    pub fn done(&self, count: u64) {
        self.0.send_modify(|progress| progress.done = count);
    }

    /// It was about `count` things, and all are done.
    pub fn all_done(&self, count: u64) {
        self.0.send_modify(|progress| (progress.total, progress.done) = (Some(count), count));
    }

    /// So many more are done.
    pub fn add_done(&self, count: u64) {
        self.0.send_modify(|progress| progress.done += count);
    }

    /// So many more failed with `code`. None leaves no trace, for a run that names a code is not done.
    pub fn failed(&self, code: &str, count: u64) {
        if count > 0 {
            self.0.send_modify(|progress| *progress.failed.entry(code.to_owned()).or_default() += count);
        }
    }

    /// It published this snapshot; `None` when nothing had changed.
    pub fn published(&self, snapshot: Option<u32>) {
        self.0.send_modify(|progress| progress.snapshot = snapshot);
    }
}

/// A run, as `/v1/runs` and `--json` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Names it in `/v1/runs/{id}`.
    pub id: String,
    /// `refresh`, `recollect`, `delete`, `untrack`, `erase`, `publish`, `rebuild`, `features`, `freeze`, `sync-links`, `replay`
    /// or `job`.
    pub kind: String,
    /// What it is about, where one thing is: the job, the link, the id of the erasure or of the decision, or date and mode of
    /// the features.
    pub name: Option<String>,
    /// `command`, `api`, `daemon` for what it does by itself, or the schedule's word: `schedule` or `catch-up`.
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

impl Run {
    /// How it ended; `None` while it goes on.
    pub fn ending(&self) -> Option<Ending<'_>> {
        self.outcome.as_deref().map(Ending::of)
    }
}

/// How a run ended, of a person's order or of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending<'r> {
    /// All of it was done.
    Done,
    /// A part of it failed.
    Partly,
    /// Nothing of it was done, because all that it was about failed.
    Failed,
    /// The end of the program cut it off.
    Interrupted,
    /// It was never begun: the job was still at an earlier slot.
    Skipped,
    /// It failed as a whole, with this code.
    Code(&'r str),
}

impl<'r> Ending<'r> {
    /// What the word on record says.
    pub fn of(word: &'r str) -> Self {
        let own = [Self::Done, Self::Partly, Self::Failed, Self::Interrupted, Self::Skipped];
        own.into_iter().find(|ending| ending.word() == word).unwrap_or(Self::Code(word))
    }

    /// The word on record.
    pub const fn word(self) -> &'r str {
        match self {
            Self::Done => "done",
            Self::Partly => "partly",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
            Self::Code(code) => code,
        }
    }

    /// Whether somebody should look at it. A restart is what interrupts most runs, and the next slot or order makes up
    /// for it.
    pub const fn is_trouble(self) -> bool {
        match self {
            Self::Done | Self::Interrupted | Self::Skipped => false,
            Self::Partly | Self::Failed | Self::Code(_) => true,
        }
    }
}

/// Why the work of a run, or of a job, came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Failed {
    /// The stable code.
    pub code: &'static str,
    /// What happened, without personal data.
    pub message: String,
}

impl Failed {
    /// For `error`, which has the stable code `code`.
    pub fn of(code: &'static str, error: impl fmt::Display) -> Self {
        Self { code, message: error.to_string() }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::of(error.code(), error)
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
            let sql = "UPDATE runs SET finished_at = $1, outcome = $2 WHERE finished_at IS NULL";
            tx.execute(sql, args![now, Ending::Interrupted.word()])
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
        work: impl FnOnce(Report) -> F,
    ) -> Result<i64, Error>
    where
        F: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.start_with(kind, name, reason, |_| Ok(()), work).await
    }

    /// Like [`Runs::start`], with what `note` puts on record together with the run: both are, or neither.
    ///
    /// # Errors
    /// Those of [`Runs::start`], and what `note` gave.
    pub async fn start_with<F>(
        &self,
        kind: Kind,
        name: Option<String>,
        reason: Reason,
        note: impl FnOnce(&Tx<'_>) -> Result<(), Error> + Send + 'static,
        work: impl FnOnce(Report) -> F,
    ) -> Result<i64, Error>
    where
        F: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let now = self.clock.now();
        let begin = move |tx: &Tx<'_>| {
            note(tx)?;
            let sql = "INSERT INTO runs (kind, name, reason, started_at) VALUES ($1, $2, $3, $4) RETURNING run_id";
            tx.one(sql, args![kind.name(), name.as_deref(), reason.name(), now], |row| row.int(0))
        };
        let number = self.store.write(begin).await?.ok_or(Error::Unreadable("a run"))?;
        tracing::info!(run = number, kind = kind.name(), reason = reason.name(), "a run was ordered");
        // Whatever the work logs says of which run it is.
        let span = tracing::info_span!("run", run = number, kind = kind.name());
        let progress = watch::Sender::new(Progress::default());
        self.lock().insert(number, progress.subscribe());
        let (runs, shutdown, working) =
            (self.clone(), self.shutdown.clone(), tokio::spawn(work(Report(progress.clone())).instrument(span)));
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
            let ended = Ended::of(outcome, reached, runs.clock.now());
            ended.tell(number, kind);
            // Who waits for its end would not hear of it: a state that takes no write now takes one later.
            while let Err(error) = runs.record(number, ended.clone()).await {
                tracing::error!(code = error.code(), run = number, "what came of a run could not be kept yet: {error}");
                if shutdown.run_until_cancelled(tokio::time::sleep(RECORD_AGAIN)).await.is_none() {
                    break;
                }
            }
            runs.lock().remove(&number);
            // Only now, so that whoever waits for the end finds it on record.
            drop(progress);
        });
        Ok(number)
    }

    async fn record(&self, number: i64, ended: Ended) -> Result<(), Error> {
        let Ended { ending, message, reached, at } = ended;
        let failed = (!reached.failed.is_empty()).then(|| serde_json::json!(reached.failed).to_string());
        let Progress { total, done, snapshot, .. } = reached;
        let end = move |tx: &Tx<'_>| {
            tx.execute("DELETE FROM runs WHERE started_at < $1", args![at - KEEP])?;
            tx.execute(
                "UPDATE runs SET finished_at = $2, outcome = $3, total = $4, done = $5, failed = $6, snapshot = $7, \
                 message = $8 WHERE run_id = $1",
                args![number, at, ending.word(), total, done, failed.as_deref(), snapshot, message.as_deref()],
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

    /// The run that was `seen`, once it differs from that, or after `patience` when it does not.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn get_news(&self, seen: &Run, patience: Duration) -> Result<Option<Run>, Error> {
        let going = seen.id.parse().ok().and_then(|number: i64| self.lock().get(&number).cloned());
        if let (Some(mut going), None) = (going, &seen.finished_at) {
            // What was seen is compared: for a copy of the receiver that is kept here, all that ever came is news.
            let news = going.wait_for(|reached| *reached != seen.progress);
            // An error is its end.
            let news = tokio::time::timeout(patience, async { news.await.is_ok() });
            let _ = self.shutdown.run_until_cancelled(news).await;
        }
        self.get(&seen.id).await
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

/// How a run ended.
#[derive(Clone)]
struct Ended {
    ending: Ending<'static>,
    message: Option<String>,
    reached: Progress,
    at: Timestamp,
}

impl Ended {
    /// By what its work gave; `None` when it was interrupted.
    fn of(outcome: Option<Result<(), Failed>>, reached: Progress, at: Timestamp) -> Self {
        let (ending, message) = match outcome {
            Some(Ok(())) if reached.failed.is_empty() => (Ending::Done, None),
            Some(Ok(())) if reached.done > 0 => (Ending::Partly, None),
            Some(Ok(())) => (Ending::Failed, None),
            Some(Err(Failed { code, message })) => (Ending::Code(code), Some(message)),
            None => (Ending::Interrupted, None),
        };
        Self { ending, message, reached, at }
    }

    fn tell(&self, number: i64, kind: Kind) {
        let (kind, word) = (kind.name(), self.ending.word());
        metrics::counter!("vinculo_runs_total", "kind" => kind, "outcome" => word).increment(1);
        if let Some(message) = &self.message {
            tracing::warn!(run = number, kind, code = word, "a run failed: {message}");
        } else {
            tracing::info!(run = number, kind, outcome = word, "a run ended");
        }
    }
}

/// Which runs are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only with this name: that of a job, a link, and so on, as [`Run::name`] says.
    pub name: Option<String>,
}

/// The runs that somebody ordered, as rows of the form that [`read`] reads.
const ORDERED: &str = "SELECT CAST(run_id AS TEXT) AS id, kind, name, reason, started_at, finished_at, outcome, total, done, \
     failed, snapshot, message, started_at AS slot_at, done AS item_count FROM runs";

/// The schedule's, in the same form.
const SCHEDULED: &str = "SELECT job || '@' || CAST(slot_at AS TEXT) AS id, 'job' AS kind, job AS name, reason, started_at, \
     finished_at, outcome, NULL AS total, coalesce(item_count, 0) AS done, NULL AS failed, NULL AS snapshot, NULL AS message, \
     slot_at, item_count FROM job_runs WHERE reason <> 'first-start'";

/// At most `limit` runs, the newest first, from after the run `after` on. Gives them and, when there are more, the
/// `after` of the next page. After a run that is not on record there is none.
///
/// # Errors
/// [`Error::Database`].
pub fn list(
    tx: &Tx<'_>,
    filter: &Filter,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Run>, Option<String>), Error> {
    let last = after.map(|id| one(tx, id, |row| row.int(4))).transpose()?;
    let last = match last {
        None => i64::MAX,
        Some(Some(started_at)) => started_at,
        Some(None) => return Ok((Vec::new(), None)),
    };
    let sql = format!(
        "SELECT * FROM ({ORDERED} UNION ALL {SCHEDULED}) AS every WHERE (started_at < $1 OR (started_at = $1 AND id < $2)) \
         AND (CAST($3 AS TEXT) IS NULL OR kind = $3) AND (CAST($4 AS TEXT) IS NULL OR name = $4) \
         ORDER BY started_at DESC, id DESC LIMIT $5"
    );
    let (kind, name, more) = (filter.kind.as_deref(), filter.name.as_deref(), limit.saturating_add(1));
    let found = tx.all(&sql, args![last, after.unwrap_or_default(), kind, name, more], read)?;
    Ok(store::page(found, limit, |run| run.id.clone()))
}

/// The run called `id` as it is on record.
///
/// # Errors
/// [`Error::Database`].
pub fn get(tx: &Tx<'_>, id: &str) -> Result<Option<Run>, Error> {
    one(tx, id, read)
}

/// What `read` reads of the run called `id`, which is looked up by its key: there may be very many.
fn one<T>(tx: &Tx<'_>, id: &str, read: fn(&Row<'_>) -> Result<T, Error>) -> Result<Option<T>, Error> {
    if let Some((job, slot)) = id.rsplit_once('@') {
        let Ok(slot) = slot.parse::<i64>() else { return Ok(None) };
        return tx.one(&format!("{SCHEDULED} AND job = $1 AND slot_at = $2"), args![job, slot], read);
    }
    let Ok(number) = id.parse::<i64>() else { return Ok(None) };
    tx.one(&format!("{ORDERED} WHERE run_id = $1"), args![number], read)
}

/// The last run of a job: one of the schedule, or one that was ordered.
#[derive(Debug, Clone)]
pub struct LastOfJob {
    /// The run.
    pub run: Run,
    /// The time that it was due, or that it was ordered.
    pub slot_at: Timestamp,
    /// How many things it touched; absent while nobody knows.
    pub item_count: Option<i64>,
}

/// The last run of each job, by its name, of those begun by `until`: one by a clock that was days ahead would be the
/// last for as long. Of slots that were passed over nothing came.
///
/// # Errors
/// [`Error::Database`].
pub fn last_of_jobs(tx: &Tx<'_>, until: Timestamp) -> Result<BTreeMap<String, LastOfJob>, Error> {
    let sql = format!(
        "WITH every AS ({ORDERED} WHERE kind = 'job' UNION ALL {SCHEDULED}), numbered AS (SELECT every.*, \
         row_number() OVER (PARTITION BY name ORDER BY started_at DESC, id DESC) AS number FROM every \
         WHERE coalesce(outcome, '') <> $2 AND started_at <= $1) SELECT * FROM numbered WHERE number = 1"
    );
    let found = tx.all(&sql, args![until, Ending::Skipped.word()], |row| {
        let (run, slot_at, item_count) = (read(row)?, row.at(12)?, row.opt_int(13)?);
        Ok((run.name.clone().unwrap_or_default(), LastOfJob { run, slot_at, item_count }))
    })?;
    Ok(found.into_iter().collect())
}

fn read(row: &Row<'_>) -> Result<Run, Error> {
    let (started_at, finished_at) = (row.at(4)?, row.opt_at(5)?);
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
            total: row.opt_count(7)?,
            done: row.opt_count(8)?.unwrap_or_default(),
            failed: failed.map_err(|_| Error::Unreadable("the failures of a run"))?,
            snapshot: row.opt_int(10)?.and_then(|number| u32::try_from(number).ok()),
        },
        message: row.opt_text(11)?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_ending_is_its_word_on_record_and_no_restart_is_trouble() {
        for word in ["done", "partly", "failed", "interrupted", "skipped", "disk_full"] {
            assert_eq!(Ending::of(word).word(), word);
        }
        assert_eq!(Ending::of("partly"), Ending::Partly);
        assert_eq!(Ending::of("disk_full"), Ending::Code("disk_full"));
        let harmless: Vec<_> =
            [Ending::Done, Ending::Partly, Ending::Failed, Ending::Interrupted, Ending::Code("disk_full")]
                .into_iter()
                .filter(|ending| !ending.is_trouble())
                .map(Ending::word)
                .collect();
        // Nobody counts those that were passed over.
        let rule = format!("vinculo_job_runs_total{{outcome!~\"{}\"}}", harmless.join("|"));
        let alerts = include_str!("../packaging/prometheus/alerts.yml");
        assert!(alerts.contains(&rule), "the alert and the pages disagree: {rule}");
    }

    async fn runs(path: &Path) -> (Runs, CancellationToken) {
        let shutdown = CancellationToken::new();
        let store = Store::open(path).unwrap();
        (Runs::open(store, Clock::system(), TaskTracker::new(), shutdown.clone()).await.unwrap(), shutdown)
    }

    async fn ended(runs: &Runs, number: i64) -> Run {
        let mut run = runs.get(&number.to_string()).await.unwrap().unwrap();
        while run.finished_at.is_none() {
            run = runs.get_news(&run, Duration::from_secs(10)).await.unwrap().unwrap();
        }
        run
    }

    #[tokio::test]
    async fn a_run_is_followed_while_it_goes_on_and_kept_when_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, _) = runs(&folder.path().join("state.db")).await;
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        let work = |report: Report| async move {
            report.total(2);
            report.add_done(1);
            let _ = wait.await;
            report.failed("timeout", 1);
            Ok(())
        };
        let number = runs.start(Kind::Refresh, None, Reason::Api, work).await.unwrap();
        let mut run = runs.get(&number.to_string()).await.unwrap().unwrap();
        while run.progress.done == 0 {
            run = runs.get_news(&run, Duration::from_secs(10)).await.unwrap().unwrap();
        }
        assert_eq!((run.progress.total, &run.outcome, run.progress.ended()), (Some(2), &None, 1));
        // As long as nothing happens there is no news, however much there was before.
        let without_news = tokio::time::timeout(Duration::from_millis(200), runs.get_news(&run, Duration::MAX)).await;
        assert!(without_news.is_err(), "{without_news:?}");
        go_on.send(()).unwrap();
        let run = ended(&runs, number).await;
        assert_eq!((run.outcome.as_deref(), run.progress.ended(), run.message), (Some("partly"), 2, None));
    }

    #[tokio::test]
    async fn a_failure_a_panic_and_an_end_of_the_program_are_outcomes() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, shutdown) = runs(&folder.path().join("state.db")).await;
        let failing = |_| async { Err(Failed { code: "disk_full", message: "no room".to_owned() }) };
        let failed = runs.start(Kind::Publish, None, Reason::Command, failing).await.unwrap();
        let failed = ended(&runs, failed).await;
        assert_eq!((failed.outcome.as_deref(), failed.message.as_deref()), (Some("disk_full"), Some("no room")));
        let panics = |_| async { panic!("as told") };
        let panicked = runs.start(Kind::Publish, None, Reason::Command, panics).await.unwrap();
        assert_eq!(ended(&runs, panicked).await.outcome.as_deref(), Some("panicked"));
        let cut_off = runs.start(Kind::Rebuild, None, Reason::Api, |_| std::future::pending()).await.unwrap();
        shutdown.cancel();
        assert_eq!(ended(&runs, cut_off).await.outcome.as_deref(), Some("interrupted"));
    }

    #[tokio::test]
    async fn a_run_is_done_that_says_that_nothing_failed() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, _) = runs(&folder.path().join("state.db")).await;
        let work = |report: Report| async move {
            report.all_done(2);
            report.add_done(1);
            report.failed("timeout", 0);
            report.published(Some(7));
            Ok(())
        };
        let run = ended(&runs, runs.start(Kind::Erase, None, Reason::Api, work).await.unwrap()).await;
        assert_eq!(run.outcome.as_deref(), Some("done"));
        let reached = Progress { total: Some(2), done: 3, failed: BTreeMap::new(), snapshot: Some(7) };
        assert_eq!(run.progress, reached);
    }

    #[tokio::test]
    async fn what_is_noted_with_a_run_is_on_record_with_it_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, _) = runs(&folder.path().join("state.db")).await;
        let note = |tx: &Tx<'_>| tx.execute("INSERT INTO meta (name, value) VALUES ('noted', '')", args![]).map(drop);
        let start = || runs.start_with(Kind::Erase, None, Reason::Api, note, |_| async { Ok(()) });
        let counts = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM meta WHERE name = 'noted')";
        let counts = || runs.store.read(move |tx| tx.one(counts, args![], |row| Ok((row.int(0)?, row.int(1)?))));
        let refuse = "CREATE TRIGGER full BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'full'); END";
        runs.store.write(move |tx| tx.execute(refuse, args![])).await.unwrap();
        start().await.unwrap_err();
        assert_eq!(counts().await.unwrap(), Some((0, 0)));
        runs.store.write(|tx| tx.execute("DROP TRIGGER full", args![])).await.unwrap();
        start().await.unwrap();
        assert_eq!(counts().await.unwrap(), Some((1, 1)));
        // Noted already.
        start().await.unwrap_err();
        assert_eq!(counts().await.unwrap(), Some((1, 1)));
    }

    #[tokio::test]
    async fn what_a_crash_cut_off_was_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let begun = "INSERT INTO runs (kind, reason, started_at) VALUES ('refresh', 'api', $1)";
        let store = Store::open(&path).unwrap();
        let now = Clock::system().now();
        store.write(move |tx| tx.execute(begun, args![now])).await.unwrap();
        let runs = Runs::open(store, Clock::system(), TaskTracker::new(), CancellationToken::new()).await.unwrap();
        assert_eq!(runs.get("1").await.unwrap().unwrap().outcome.as_deref(), Some("interrupted"));
    }

    #[tokio::test]
    async fn runs_of_the_schedule_and_of_people_are_one_list_in_pages() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let begun = |tx: &Tx<'_>| {
            for (at, reason, outcome) in
                [(5, "first-start", "noted"), (10, "schedule", "done"), (30, "schedule", "skipped")]
            {
                tx.execute(
                    "INSERT INTO job_runs (job, slot_at, started_at, finished_at, reason, outcome, item_count) \
                     VALUES ('daily', $1, $1, $1, $2, $3, 7)",
                    args![Timestamp::from_micros(at), reason, outcome],
                )?;
            }
            for (at, kind, name) in [(20, "publish", None), (20, "job", Some("daily")), (40, "rebuild", None)] {
                let sql = "INSERT INTO runs (kind, name, reason, started_at) VALUES ($1, $2, 'api', $3)";
                tx.execute(sql, args![kind, name, Timestamp::from_micros(at)])?;
            }
            Ok(())
        };
        store.write(begun).await.unwrap();
        let walk = |tx: &Tx<'_>| {
            let (mut pages, mut after) = (Vec::new(), None);
            loop {
                let (page, next) = list(tx, &Filter::default(), after.as_deref(), 2)?;
                pages.push(page.into_iter().map(|run| run.id).collect::<Vec<_>>());
                after = next;
                if after.is_none() {
                    let last = |until| {
                        let last = last_of_jobs(tx, Timestamp::from_micros(until))?;
                        let told = |(name, last): (String, LastOfJob)| {
                            (name, last.run.id, last.slot_at.as_micros(), last.item_count)
                        };
                        Ok::<_, Error>(last.into_iter().map(told).collect::<Vec<_>>())
                    };
                    return Ok::<_, Error>((pages, last(i64::MAX)?, last(19)?));
                }
            }
        };
        let (pages, last, before) = store.read(walk).await.unwrap();
        assert_eq!(pages, [vec!["3", "daily@30"], vec!["2", "1"], vec!["daily@10"]]);
        let daily = |id: &str, slot_at, count| ("daily".to_owned(), id.to_owned(), slot_at, Some(count));
        assert_eq!((last, before), (vec![daily("2", 20, 0)], vec![daily("daily@10", 10, 7)]));
        let filter = Filter { kind: Some("job".to_owned()), name: Some("daily".to_owned()) };
        let (jobs, _) = store.read(move |tx| list(tx, &filter, None, 10)).await.unwrap();
        assert_eq!(jobs.iter().map(|run| run.progress.done).collect::<Vec<_>>(), [7, 0, 7]);
    }
}
