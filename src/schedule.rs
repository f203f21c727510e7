//! The jobs of `jobs/*.toml` and the clock: what is to be done when nobody asks.
//!
//! *Takes* [`Job`]s, read at start, and the daemon's [`Actions`]. *Gives* calls of these; and the marks in the queue
//! that the action `fetch` comes to. *Promises* that no slot of a job runs twice, across restarts, daylight saving and
//! clock steps, because each is claimed in the state before it runs; that a job that was due while nothing ran runs
//! once, not once for each missed slot; and that a run that is still going is not started again. *Not here*: how an
//! action is done.
//!
//! A slot on record that lies days ahead means that a clock was ahead when it ran, or that the clock is behind now;
//! nobody can tell which. Such slots stay on record, but the job ignores them until all of them have passed. Then they
//! count again: if the clock was wrongly set back and is right again, nothing runs a second time. If instead time comes
//! to them slot by slot, because the clock had been ahead, each but the last is claimed anew and runs, so that no job
//! stands still for as long as the clock was ahead.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

use crate::clock::{Clock, Timestamp};
use crate::link_id::LinkId;
use crate::links::freshness::{self, Scope};
use crate::queue::{self, Queue, Trigger};
use crate::resources::Resource;
use crate::runs::{self, Ending, Failed};
use crate::store::{self, ROWS_AT_ONCE, Store, Tx, args};

mod job;
pub mod view;

pub use job::{Action, Job, SHIPPED, load};

/// A slot that is begun later than this was missed, and is caught up.
const LATE: Duration = Duration::from_mins(1);

/// The longest sleep: the wall clock may be set while it lasts.
const NAP: Duration = Duration::from_secs(10);

/// A slot on record that is further ahead than this is there because a clock was wrong, or is.
pub(crate) const AHEAD: Duration = Duration::from_hours(25);

/// What the daemon does for a job.
pub trait Actions: Send + Sync + 'static {
    /// Does the job's action once and gives how many things it touched. Dropped when the daemon ends.
    fn run(&self, job: &Job) -> impl Future<Output = Result<u64, Failed>> + Send;
}

/// Jobs, and the way to ask for one of them between its slots. Cheap to clone.
#[derive(Clone)]
pub struct Asker(Arc<BTreeMap<String, (Job, mpsc::Sender<Answer>)>>);

/// Who waits for what came of a run that was asked for.
type Answer = oneshot::Sender<Result<u64, Failed>>;

/// What is asked of each job.
pub struct Asked(Vec<(Job, mpsc::Receiver<Answer>)>);

impl Asker {
    /// A way to ask for one of `jobs`, and the other end of it, for [`run`].
    pub fn new(jobs: Vec<Job>) -> (Self, Asked) {
        let (mut asker, mut asked) = (BTreeMap::new(), Vec::new());
        for job in jobs {
            let (sender, receiver) = mpsc::channel(1);
            asker.insert(job.name.clone(), (job.clone(), sender));
            asked.push((job, receiver));
        }
        (Self(Arc::new(asker)), Asked(asked))
    }

    /// The jobs, by name.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.0.values().map(|(job, _)| job)
    }

    /// Whether there is a job called `name`.
    pub fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Runs the job called `name` once, after the run that is going, and gives how many things it touched. `None` when
    /// there is no such job, or the schedule ends.
    pub async fn run_now(&self, name: &str) -> Option<Result<u64, Failed>> {
        let (answer, result) = oneshot::channel();
        self.0.get(name)?.1.send(answer).await.ok()?;
        result.await.ok()
    }
}

/// When jobs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// At their slots, and when asked for.
    Slots,
    /// Only when asked for.
    OnRequest,
}

/// Runs the jobs of `asked` until `shutdown`. A failed run is logged and recorded, and its job goes on with the next
/// slot.
pub async fn run(
    asked: Asked,
    times: Times,
    store: Store,
    clock: Clock,
    actions: Arc<impl Actions>,
    shutdown: CancellationToken,
) {
    let mut watches = JoinSet::new();
    for (job, asked) in asked.0 {
        let watch = Watch { job: Arc::new(job), store: store.clone(), clock: clock.clone() };
        watches.spawn(watch.run(times, asked, Arc::clone(&actions), shutdown.clone()));
    }
    watches.join_all().await;
}

/// One job and its next slot.
struct Watch {
    job: Arc<Job>,
    store: Store,
    clock: Clock,
}

impl Watch {
    async fn run(
        self,
        times: Times,
        mut asked: mpsc::Receiver<Answer>,
        actions: Arc<impl Actions>,
        shutdown: CancellationToken,
    ) {
        let keeps_time = times == Times::Slots;
        let mut has_begun = false;
        let mut nap = Duration::ZERO;
        if !keeps_time && let Err(error) = self.begin().await {
            self.complain(&error);
        }
        loop {
            // One after the other: a run that is still going is not started again, whoever asks.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(nap), if keeps_time => {
                    let step = async {
                        if !has_begun {
                            self.begin().await?;
                            has_begun = true;
                        }
                        self.step(&actions, &shutdown).await
                    };
                    nap = step.await.unwrap_or_else(|error| self.complain(&error));
                }
                Some(answer) = asked.recv() => {
                    if let Some(result) = shutdown.run_until_cancelled(self.act(Arc::clone(&actions))).await {
                        // Whoever asked may have left.
                        let _ = answer.send(result);
                    }
                }
            }
        }
    }

    /// Records as interrupted the run that an earlier process began and never ended. A job that was off and is on now
    /// begins as a new one does: what fell due meanwhile is not caught up.
    async fn begin(&self) -> Result<(), store::Error> {
        let (name, is_enabled, now) = (self.job.name.clone(), self.job.is_enabled, self.clock.now());
        let begin = move |tx: &Tx<'_>| {
            tx.execute(
                "UPDATE job_runs SET finished_at = $2, outcome = $3 WHERE job = $1 AND finished_at IS NULL",
                args![&name, now, Ending::Interrupted.word()],
            )?;
            let off = format!("job off {name}");
            if !is_enabled {
                let note = "INSERT INTO meta (name, value) VALUES ($1, '') ON CONFLICT (name) DO NOTHING";
                tx.execute(note, args![&off])?;
            } else if tx.execute("DELETE FROM meta WHERE name = $1", args![&off])? > 0 {
                note_first_start(tx, &name, now)?;
            }
            Ok(())
        };
        self.store.write(begin).await
    }

    /// Runs the job if a slot is due, and gives how long to sleep.
    async fn step(&self, actions: &Arc<impl Actions>, shutdown: &CancellationToken) -> Result<Duration, store::Error> {
        let now = self.clock.now();
        let Some(last) = self.last_slot(now).await? else {
            let name = self.job.name.clone();
            self.store.write(move |tx| note_first_start(tx, &name, now)).await?;
            return Ok(Duration::ZERO);
        };
        let Some(next) = self.job.next_after(last) else { return Ok(NAP) };
        if next > now {
            return Ok(next.since(now).min(NAP));
        }
        let slot = self.job.last_between(last, now).unwrap_or(next);
        let reason = if now.since(slot) > LATE { "catch-up" } else { "schedule" };
        if self.claim(slot, reason).await? {
            let outcome = shutdown.run_until_cancelled(self.act(Arc::clone(actions))).await;
            self.tell(slot, reason, outcome.as_ref());
            // A state that takes no write now takes one later; until then the run would count as going on.
            while let Err(error) = self.record(slot, outcome.as_ref()).await {
                if shutdown.run_until_cancelled(tokio::time::sleep(self.complain(&error))).await.is_none() {
                    return Err(error);
                }
            }
        }
        Ok(Duration::ZERO)
    }

    /// The last slot that ran or was passed over; `None` when the job is new, or all its slots lie days ahead.
    async fn last_slot(&self, now: Timestamp) -> Result<Option<Timestamp>, store::Error> {
        let name = self.job.name.clone();
        let last = self.store.read(move |tx| last_slot_of(tx, &name, now)).await?;
        if last.is_none_or(|last| last <= now + AHEAD) {
            return Ok(last);
        }
        let name = self.job.name.clone();
        let leave_out = move |tx: &Tx<'_>| {
            let first = "SELECT min(slot_at) FROM job_runs WHERE job = $1 AND slot_at > $2";
            if let Some(first) = tx.one(first, args![&name, now + AHEAD], |row| row.opt_at(0))?.flatten() {
                tx.set_meta(&ahead(&name), &first.as_micros().to_string())?;
            }
            last_slot_of(tx, &name, now)
        };
        self.store.write(leave_out).await
    }

    /// True when the slot is this run's: nobody ran it before, but for a clock that was ahead.
    async fn claim(&self, slot: Timestamp, reason: &'static str) -> Result<bool, store::Error> {
        let (name, now) = (self.job.name.clone(), self.clock.now());
        let claim = move |tx: &Tx<'_>| {
            let left_out = left_out_from(tx, &name, now)?.unwrap_or(Timestamp::from_micros(i64::MAX));
            let claimed = tx.execute(
                "INSERT INTO job_runs (job, slot_at, started_at, reason) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (job, slot_at) DO UPDATE SET started_at = excluded.started_at, reason = excluded.reason, \
                 finished_at = NULL, outcome = NULL, item_count = NULL WHERE job_runs.slot_at >= $5",
                args![&name, slot, now, reason, left_out],
            )?;
            count_up_to(tx, &name, slot)?;
            Ok(claimed == 1)
        };
        self.store.write(claim).await
    }

    async fn act(&self, actions: Arc<impl Actions>) -> Result<u64, Failed> {
        let job = Arc::clone(&self.job);
        // A task of its own, so that a panic ends this run and not the schedule.
        let mut run = JoinSet::new();
        let span = tracing::debug_span!("job", job = %job.name);
        run.spawn(async move { actions.run(&job).await }.instrument(span));
        match run.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(Failed { code: "panicked", message: "the action ended unexpectedly: please report it".into() }),
        }
    }

    /// Tells what came of a run.
    fn tell(&self, slot: Timestamp, reason: &'static str, outcome: Option<&Result<u64, Failed>>) {
        let (name, (code, count)) = (self.job.name.clone(), word(outcome));
        metrics::counter!("vinculo_job_runs_total", "name" => name.clone(), "outcome" => code).increment(1);
        if let Some(Err(failed)) = outcome {
            warn!(job = %name, %slot, reason, code, "the job failed: {failed}");
        } else {
            info!(job = %name, %slot, reason, outcome = code, count, "the job ran");
        }
    }

    /// Writes down what came of the run, and passes over the slots that went by while it lasted.
    async fn record(&self, slot: Timestamp, outcome: Option<&Result<u64, Failed>>) -> Result<(), store::Error> {
        let (name, now, (code, count)) = (self.job.name.clone(), self.clock.now(), word(outcome));
        let passed = self.job.last_between(slot, now);
        let record = move |tx: &Tx<'_>| {
            tx.execute(
                "UPDATE job_runs SET finished_at = $3, outcome = $4, item_count = $5 WHERE job = $1 AND slot_at = $2",
                args![&name, slot, now, code, count],
            )?;
            if let Some(passed) = passed {
                tx.execute(
                    "INSERT INTO job_runs (job, slot_at, started_at, finished_at, reason, outcome) \
                     VALUES ($1, $2, $3, $3, 'schedule', $4) ON CONFLICT DO NOTHING",
                    args![&name, passed, now, Ending::Skipped.word()],
                )?;
                count_up_to(tx, &name, passed)?;
            }
            tx.execute("DELETE FROM job_runs WHERE job = $1 AND slot_at < $2", args![&name, now - runs::KEEP])?;
            Ok(())
        };
        self.store.write(record).await
    }

    fn complain(&self, error: &store::Error) -> Duration {
        warn!(job = %self.job.name, code = error.code(), "the schedule cannot use the state, and tries again: {error}");
        NAP
    }
}

/// What came of a run, or that it was interrupted, as its word on record; and what it counted.
fn word(outcome: Option<&Result<u64, Failed>>) -> (&'static str, Option<u64>) {
    let (ending, count) = match outcome {
        Some(Ok(count)) => (Ending::Done, Some(*count)),
        Some(Err(failed)) => (Ending::Code(failed.code), None),
        None => (Ending::Interrupted, None),
    };
    (ending.word(), count)
}

/// The last slot of the job that counts.
fn last_slot_of(tx: &Tx<'_>, job: &str, now: Timestamp) -> Result<Option<Timestamp>, store::Error> {
    let left_out = left_out_from(tx, job, now)?.unwrap_or(Timestamp::from_micros(i64::MAX));
    let sql = "SELECT max(slot_at) FROM job_runs WHERE job = $1 AND slot_at < $2";
    Ok(tx.one(sql, args![job, left_out], |row| row.opt_at(0))?.flatten())
}

/// Name in `meta` of the first of the job's slots that are left out because they lie ahead.
fn ahead(job: &str) -> String {
    format!("job ahead {job}")
}

/// From which slot on those of the job are left out; `None` when all count, because all have passed.
fn left_out_from(tx: &Tx<'_>, job: &str, now: Timestamp) -> Result<Option<Timestamp>, store::Error> {
    let Some(first) = tx.meta(&ahead(job))? else { return Ok(None) };
    let first = first.parse().map_err(|_| store::Error::Unreadable("from when on a job's slots lie ahead"))?;
    let is_ahead = "SELECT 1 FROM job_runs WHERE job = $1 AND slot_at > $2 LIMIT 1";
    Ok(tx.one(is_ahead, args![job, now], |_| Ok(()))?.map(|()| Timestamp::from_micros(first)))
}

/// The job has come to `slot`: that counts, and whatever was left out before it.
fn count_up_to(tx: &Tx<'_>, job: &str, slot: Timestamp) -> Result<(), store::Error> {
    let sql = "UPDATE meta SET value = CAST($2 AS TEXT) WHERE name = $1 AND CAST(value AS BIGINT) <= $2";
    tx.execute(sql, args![&ahead(job), slot.as_micros() + 1]).map(drop)
}

/// Notes since when the job is known: what was due before is not caught up, and what is due later is.
fn note_first_start(tx: &Tx<'_>, job: &str, now: Timestamp) -> Result<(), store::Error> {
    let sql = "INSERT INTO job_runs (job, slot_at, started_at, finished_at, reason, outcome) \
         VALUES ($1, $2, $2, $2, 'first-start', 'noted') ON CONFLICT DO NOTHING";
    tx.execute(sql, args![job, now])?;
    count_up_to(tx, job, now)
}

/// Marks what the scope names and nobody waits for yet, and gives how many refreshes that are.
///
/// # Errors
/// [`store::Error`]; what was marked until then stays marked.
pub async fn fetch(scope: &Scope, store: &Store, queue: &Queue, now: Timestamp) -> Result<u64, store::Error> {
    let mut marked = 0;
    for &resource in &scope.resources {
        let mut after = String::new();
        loop {
            let stale = find_stale(scope, resource, after, store, now).await?;
            let Some(last) = stale.last() else { break };
            after = last.as_str().to_owned();
            marked += stale.len() as u64;
            store
                .write(move |tx| {
                    stale.iter().try_for_each(|link_id| queue::mark(tx, link_id, resource, Trigger::Schedule, now))
                })
                .await?;
            queue.announce();
        }
    }
    Ok(marked)
}

/// The next links after `after`, by id, whose resource was last listed longer ago than the scope says, or never. Left
/// alone are resources that Belvo does not read for the link and never did, paused links, and refreshes that wait or
/// run already.
async fn find_stale(
    scope: &Scope,
    resource: &'static Resource,
    after: String,
    store: &Store,
    now: Timestamp,
) -> Result<Vec<LinkId>, store::Error> {
    let before = now - scope.older_than;
    let access_mode = scope.access_mode.clone();
    let (is_read, is_late) = (freshness::is_read(resource), freshness::is_late("$3"));
    let sql = format!(
        "SELECT l.link_id FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = $1 \
         WHERE l.link_id > $4 AND (CAST($2 AS TEXT) IS NULL OR l.access_mode = $2) AND l.paused_reason IS NULL \
         AND {is_read} AND {is_late} AND f.blocked_reason IS NULL AND f.due_at IS NULL AND f.lease IS NULL \
         ORDER BY l.link_id LIMIT $5"
    );
    let find = move |tx: &Tx<'_>| {
        let mode = access_mode.as_deref();
        let args = args![resource.name, mode, before, &*after, ROWS_AT_ONCE];
        tx.all(&sql, args, |row| row.link_id(0))
    };
    store.read(find).await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::Hand;

    /// A daemon's schedule over a state that outlives it, with the clock in the test's hand.
    struct World {
        _folder: tempfile::TempDir,
        store: Store,
        hand: Hand,
        ran: Arc<Ran>,
    }

    struct Ran {
        times: Mutex<u32>,
        /// How long each run takes.
        minutes: AtomicU64,
        hand: Hand,
        store: Store,
    }

    impl Actions for Ran {
        async fn run(&self, job: &Job) -> Result<u64, Failed> {
            *self.times.lock().unwrap() += 1;
            self.hand.pass(Duration::from_mins(self.minutes.load(Ordering::Relaxed)));
            assert_ne!(job.name, "panics", "as told");
            if job.action == Action::Fetch {
                let queue = Queue::open(self.store.clone(), self.hand.clock()).await?;
                return Ok(fetch(&job.scope, &self.store, &queue, self.hand.now()).await?);
            }
            Ok(3)
        }
    }

    impl World {
        fn at(time: &str) -> Self {
            let hand = Hand::at(Timestamp::parse(time).unwrap());
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let (minutes, times) = (AtomicU64::new(0), Mutex::default());
            let ran = Arc::new(Ran { times, minutes, hand: hand.clone(), store: store.clone() });
            Self { _folder: folder, store, hand, ran }
        }

        fn clock_says(&self, time: &str) {
            self.hand.set(Timestamp::parse(time).unwrap());
        }

        /// Starts, does everything that is due, and ends; gives how often the action ran in all since the beginning.
        async fn runs(&self, job: &Job) -> u32 {
            let clock = self.hand.clock();
            let watch = Watch { job: Arc::new(job.clone()), store: self.store.clone(), clock };
            watch.begin().await.unwrap();
            while watch.step(&self.ran, &CancellationToken::new()).await.unwrap().is_zero() {}
            *self.ran.times.lock().unwrap()
        }

        fn reasons(&self, job: &str) -> Vec<String> {
            let sql = "SELECT reason || ' ' || coalesce(outcome, '?') FROM job_runs WHERE job = $1 ORDER BY slot_at";
            self.store.readers().read(|tx| tx.all(sql, args![job], |row| Ok(row.str(0)?.to_owned()))).unwrap()
        }
    }

    fn job(name: &str, schedule: &str, action: &str) -> Job {
        let text = format!("schedule = \"{schedule}\"\ntimezone = \"America/Sao_Paulo\"\naction = \"{action}\"");
        Job::parse(name, "jobs/test.toml", &text).unwrap()
    }

    #[tokio::test]
    async fn a_job_that_is_switched_on_catches_up_nothing_from_when_it_was_off() {
        let world = World::at("2026-03-02T12:00:30Z");
        let on = job("monthly", "0 3 1 * *", "publish");
        let mut off = on.clone();
        off.is_enabled = false;
        assert_eq!(world.runs(&off).await, 0);
        world.clock_says("2026-06-15T12:00:00Z");
        assert_eq!(world.runs(&on).await, 0, "the slots of April to June came while it was off");
        world.clock_says("2026-07-01T06:00:10Z");
        assert_eq!(world.runs(&on).await, 1);
        world.clock_says("2026-08-02T00:00:00Z");
        assert_eq!(world.runs(&on).await, 2, "one that was missed while it was on is caught up");
    }

    #[tokio::test]
    async fn ten_missed_slots_are_caught_up_by_one_run_and_none_runs_twice() {
        let world = World::at("2026-03-02T12:00:30Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        assert_eq!(world.runs(&hourly).await, 0, "what was due before the first start is nobody's");
        world.clock_says("2026-03-02T13:00:01Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2026-03-02T23:10:00Z");
        assert_eq!(world.runs(&hourly).await, 2);
        assert_eq!(world.runs(&hourly).await, 2, "a restart repeats nothing");
        assert_eq!(world.reasons("hourly"), ["first-start noted", "schedule done", "catch-up done"]);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_repeats_nothing_and_goes_on_where_it_was() {
        let world = World::at("2026-03-02T12:30:00Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        world.runs(&hourly).await;
        world.clock_says("2026-03-02T18:30:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2026-03-02T16:30:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2026-03-02T18:59:59Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2026-03-02T19:00:00Z");
        assert_eq!(world.runs(&hourly).await, 2);
    }

    #[tokio::test]
    async fn a_clock_that_was_years_ahead_stops_no_job() {
        let world = World::at("2036-03-02T12:30:00Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        world.runs(&hourly).await;
        world.clock_says("2026-03-02T12:30:00Z");
        assert_eq!(world.runs(&hourly).await, 0);
        world.clock_says("2026-03-02T13:00:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        // Nor when that time is near.
        world.clock_says("2036-03-02T11:00:00Z");
        assert_eq!(world.runs(&hourly).await, 2);
        world.clock_says("2036-03-02T12:00:00Z");
        assert_eq!(world.runs(&hourly).await, 3);
    }

    #[tokio::test]
    async fn a_clock_that_was_wrongly_back_repeats_nothing_once_it_is_right_and_loses_no_history() {
        let world = World::at("2026-03-02T12:30:00Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        world.runs(&hourly).await;
        world.clock_says("2026-03-02T13:00:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2025-01-01T10:30:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        world.clock_says("2025-01-01T11:00:00Z");
        assert_eq!(world.runs(&hourly).await, 2, "it does not stand still meanwhile");
        world.clock_says("2026-03-02T13:20:00Z");
        assert_eq!(world.runs(&hourly).await, 2, "the slot of 13:00 ran already");
        world.clock_says("2026-03-02T14:00:00Z");
        assert_eq!(world.runs(&hourly).await, 3);
        let slots = ["first-start noted", "schedule done", "schedule done"];
        assert_eq!(world.reasons("hourly"), slots, "those of a year ago are too old to stay");
    }

    #[tokio::test]
    async fn slots_that_a_clock_ahead_has_claimed_run_when_time_comes_to_them() {
        let world = World::at("2026-03-12T12:30:00Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        world.runs(&hourly).await;
        for (time, runs) in [
            ("2026-03-12T13:00:00Z", 1),
            ("2026-03-12T14:00:00Z", 2),
            ("2026-03-12T15:00:00Z", 3),
            // Now it is right.
            ("2026-03-02T12:30:00Z", 3),
            ("2026-03-02T13:00:00Z", 4),
            ("2026-03-12T12:00:00Z", 5),
            ("2026-03-12T13:00:00Z", 6),
            ("2026-03-12T13:10:00Z", 6),
            ("2026-03-12T14:00:00Z", 7),
            // The last of them does not run again.
            ("2026-03-12T15:00:00Z", 7),
            ("2026-03-12T16:00:00Z", 8),
        ] {
            world.clock_says(time);
            assert_eq!(world.runs(&hourly).await, runs, "{time}");
        }
    }

    #[tokio::test]
    async fn slots_that_pass_during_a_run_are_passed_over() {
        let world = World::at("2026-03-02T12:01:00Z");
        let quarterly = job("quarterly", "*/15 * * * *", "publish");
        world.runs(&quarterly).await;
        world.ran.minutes.store(40, Ordering::Relaxed);
        world.clock_says("2026-03-02T12:15:00Z");
        assert_eq!(world.runs(&quarterly).await, 1);
        assert_eq!(world.reasons("quarterly"), ["first-start noted", "schedule done", "schedule skipped"]);
    }

    #[tokio::test]
    async fn slots_in_a_gap_and_in_a_fold_run_once() {
        for (schedule, eve, days) in [
            ("0 0 * * *", "2018-11-03T12:00:00Z", ["2018-11-04T12:00:00Z", "2018-11-05T12:00:00Z"]),
            ("30 23 * * *", "2018-02-17T12:00:00Z", ["2018-02-18T12:00:00Z", "2018-02-19T12:00:00Z"]),
        ] {
            let world = World::at(eve);
            let daily = job("daily", schedule, "publish");
            world.runs(&daily).await;
            let mut minute = Timestamp::parse(eve).unwrap();
            for (day, runs) in days.into_iter().zip(1..) {
                while minute < Timestamp::parse(day).unwrap() {
                    minute = minute + Duration::from_mins(30);
                    world.clock_says(&minute.to_string());
                    world.runs(&daily).await;
                }
                assert_eq!(world.runs(&daily).await, runs, "{schedule} until {day}");
            }
        }
    }

    #[tokio::test]
    async fn a_slot_that_a_crash_cut_off_is_not_run_again_and_the_next_one_is() {
        let world = World::at("2026-03-02T12:30:00Z");
        let hourly = job("hourly", "0 * * * *", "publish");
        world.runs(&hourly).await;
        world.clock_says("2026-03-02T13:00:00Z");
        // Fired, and then nothing more: kill -9.
        let clock = Clock::from_fn(|| Timestamp::parse("2026-03-02T13:00:00Z").unwrap());
        let watch = Watch { job: Arc::new(hourly.clone()), store: world.store.clone(), clock };
        assert!(watch.claim(Timestamp::parse("2026-03-02T13:00:00Z").unwrap(), "schedule").await.unwrap());
        world.clock_says("2026-03-02T13:05:00Z");
        assert_eq!(world.runs(&hourly).await, 0);
        world.clock_says("2026-03-02T14:00:00Z");
        assert_eq!(world.runs(&hourly).await, 1);
        assert_eq!(world.reasons("hourly"), ["first-start noted", "schedule interrupted", "schedule done"]);
    }

    #[tokio::test]
    async fn a_fetch_asks_for_all_that_its_scope_names() {
        let world = World::at("2026-03-02T12:31:00Z");
        let now = world.hand.now().as_micros();
        let fetch = "schedule = \"*/15 * * * *\"\ntimezone = \"UTC\"\naction = \"fetch\"\n\
             [scope]\nolder_than = \"24h\"\nresources = [\"owners\"]";
        let fetch = Job::parse("fetch", "jobs/fetch.toml", fetch).unwrap();
        world.runs(&fetch).await;
        let hours_ago = move |hours: i64| now - hours * 3_600_000_000;
        // Belvo was asked an hour ago, and everything was listed 30 hours ago, but where a row says otherwise. Whatever
        // is known of visits, rhythms and access modes, the scope's word holds.
        let links: [(&str, &str, &str); 9] = [
            ("1 a visit since", "", "last_accessed_at = $9"),
            ("2 no visit since", "", ""),
            ("3 listed since", "last_fetched_at = $9", ""),
            ("4 its rhythm is over", "", "refresh_rate = '24h'"),
            ("5 nobody knows its rhythm", "", "refresh_rate = NULL"),
            ("6 paused", "", "last_accessed_at = $9, paused_reason = 'link_needs_user'"),
            ("7 owners are not read", "last_collected_at = NULL", "fetch_resources = '[\"EMPLOYMENTS\"]'"),
            ("8 single and loaded", "", "access_mode = 'single', last_accessed_at = $9"),
            ("9 single and never listed", "last_fetched_at = NULL, last_collected_at = NULL", "access_mode = 'single'"),
        ];
        let told = |text: &str| text.replace("$9", &hours_ago(9).to_string());
        for (name, refresh, link) in links {
            let id = format!("{}0000000-0000-4000-8000-000000000000", &name[..1]);
            let mut sql = vec![
                format!(
                    "INSERT INTO links (link_id, access_mode, refresh_rate, first_seen_at, looked_up_at, last_accessed_at, changed_seq) \
                     VALUES ('{id}', 'recurrent', '7d', 0, {}, {}, 0)",
                    hours_ago(1),
                    hours_ago(31)
                ),
                format!(
                    "INSERT INTO refreshes (link_id, resource, marks, cleared, priority, last_fetched_at, last_collected_at) \
                     VALUES ('{id}', 'owners', 1, 1, 0, {}, {})",
                    hours_ago(30),
                    hours_ago(31)
                ),
            ];
            if !refresh.is_empty() {
                sql.push(format!("UPDATE refreshes SET {} WHERE link_id = '{id}'", told(refresh)));
            }
            if !link.is_empty() {
                sql.push(format!("UPDATE links SET {} WHERE link_id = '{id}'", told(link)));
            }
            let run = move |tx: &Tx<'_>| sql.iter().try_for_each(|sql| tx.execute(sql, args![]).map(drop));
            world.store.write(run).await.unwrap();
        }
        world.clock_says("2026-03-02T12:45:00Z");
        world.runs(&fetch).await;
        let due = "SELECT substr(link_id, 1, 1) FROM refreshes WHERE due_at IS NOT NULL ORDER BY link_id";
        let due = world.store.readers().read(|tx| tx.all(due, args![], |row| row.text(0))).unwrap();
        assert_eq!(due, ["1", "2", "4", "5", "8", "9"]);
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_run_with_a_code() {
        let world = World::at("2026-03-02T12:30:00Z");
        let panics = job("panics", "0 * * * *", "sync-links");
        world.runs(&panics).await;
        world.clock_says("2026-03-02T13:00:00Z");
        assert_eq!(world.runs(&panics).await, 1);
        assert_eq!(world.reasons("panics"), ["first-start noted", "schedule panicked"]);
    }

    #[tokio::test]
    async fn fetch_marks_stale_recurrent_links_that_nobody_waits_for() {
        let world = World::at("2026-03-02T12:31:00Z");
        let [(name, text)] =
            SHIPPED.into_iter().filter(|(name, _)| *name == "fetch-stale-links").collect::<Vec<_>>()[..]
        else {
            panic!("fetch-stale-links is shipped")
        };
        let fetch = Job::parse(name, "jobs/test.toml", text).unwrap();
        world.runs(&fetch).await;
        let hours_ago = |hours: i64| world.hand.now().as_micros() - hours * 3_600_000_000;
        let (old, fresh) = (hours_ago(30), hours_ago(3));
        let links = move |tx: &Tx<'_>| {
            for (digit, mode) in [(1, "recurrent"), (2, "recurrent"), (3, "single"), (4, "recurrent")] {
                let id = format!("00000000-0000-4000-8000-00000000000{digit}");
                let sql = "INSERT INTO links (link_id, access_mode, first_seen_at, changed_seq) VALUES ($1, $2, 0, 0)";
                tx.execute(sql, args![&id, mode])?;
                let fetched = if digit == 2 { fresh } else { old };
                let blocked = (digit == 4).then_some("forbidden");
                tx.execute(
                    "INSERT INTO refreshes (link_id, resource, marks, priority, last_fetched_at, blocked_reason) \
                     VALUES ($1, 'owners', 1, 0, $2, $3)",
                    args![&id, fetched, blocked],
                )?;
            }
            Ok(())
        };
        world.store.write(links).await.unwrap();
        world.clock_says("2026-03-02T12:45:00Z");
        world.runs(&fetch).await;
        let due =
            "SELECT link_id || ' ' || resource FROM refreshes WHERE due_at IS NOT NULL ORDER BY resource, link_id";
        let due =
            world.store.readers().read(|tx| tx.all(due, args![], |row| Ok(row.str(0)?[35..].to_owned()))).unwrap();
        assert_eq!(due, ["1 employments", "2 employments", "4 employments", "1 owners"]);
        assert_eq!(world.reasons(name).last().unwrap(), "schedule done");
    }
}
