//! The one writer of the state.
//!
//! *Takes* writes, in their order. *Gives* each its result, once the disk has it. *Promises* one sync for all that
//! wait; that what one write fails at harms no other; and that whatever was appended is followed up before any other
//! write sees the state, and soon when none comes.
//!
//! A disk gives a few hundred syncs a second, so the writer takes every waiting write into one transaction and answers
//! them all after its one sync. Beyond that, the pages that a transaction touches decide: whoever only appends touches
//! one, and what follows from it, in tables by random keys, one for each row. So under a flood appended rows are synced
//! and answered first, and followed up together; without one, each transaction follows up as many as came in it, the
//! oldest first, and some more when a burst has left any.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::checkpoint::Checkpoints;
use super::{DAMAGED, Error, MasterKeys, Tx, connect};

/// After so long the writer stops taking writes into a transaction, so that nobody waits for a crowd.
const GATHER_FOR: Duration = Duration::from_millis(10);

/// How many earlier appended writes a transaction follows up besides its own: what waits from a burst is done bit by
/// bit, so that nobody's next append waits for long.
const BIT: usize = 128;

/// The same when nothing comes.
const QUIET_BIT: usize = 512;

/// With more appended writes a second than this, they are answered first and followed up later, together.
const FLOOD: f64 = 5_000.0;
/// Their rate is measured over at least this long.
const SPAN: Duration = Duration::from_millis(100);

/// Writes that are followed up in one transaction during a flood.
pub(super) const PART: usize = 2_048;
/// In a flood, the oldest write waits no longer than this.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// With this many waiting, some are followed up at once: whoever needs all of them would wait for too long.
const MOST_WAITING: usize = 16_384;

/// When nothing was written for so long, appended writes are followed up.
const QUIET: Duration = Duration::from_millis(5);

/// The same after a commit failed: what is wrong with the state lasts for longer.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Does what follows from so many of the appended rows at most, the oldest first, and gives the number of these; 0 when
/// none is left.
pub type FollowUp = fn(&Tx<'_>, usize) -> Result<usize, Error>;

/// What the writer and the stores that hand it writes both know.
#[derive(Default)]
pub(super) struct Shared {
    /// How appended rows are followed up, once somebody has said it.
    pub follow_up: OnceLock<FollowUp>,
    /// Told of each commit in which some were.
    pub followed_up: watch::Sender<()>,
    /// Whether a write met a page that is damaged: others may do well as long as they do not.
    pub is_damaged: AtomicBool,
}

/// One write that waits for its turn and then for its commit.
pub(super) trait Write: Send {
    /// Whether it only appends, so that it may go ahead of what follows from earlier ones.
    fn is_append(&self) -> bool;
    /// Does the work; false when it failed and must be undone.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Answers the caller, after the commit or instead of it.
    fn answer(self: Box<Self>, committed: Result<(), &'static str>);
}

pub(super) struct Waiting<F, T, E> {
    work: Option<F>,
    is_append: bool,
    result: Option<Result<T, E>>,
    caller: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Waiting<F, T, E>
where
    F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    /// A write, and its result.
    pub(super) fn writing(work: F) -> (Box<dyn Write>, oneshot::Receiver<Result<T, E>>) {
        Self::boxed(work, false)
    }

    /// A write that does no more than to append a row, and its result.
    pub(super) fn appending(work: F) -> (Box<dyn Write>, oneshot::Receiver<Result<T, E>>) {
        Self::boxed(work, true)
    }

    fn boxed(work: F, is_append: bool) -> (Box<dyn Write>, oneshot::Receiver<Result<T, E>>) {
        let (caller, result) = oneshot::channel();
        (Box::new(Self { work: Some(work), is_append, result: None, caller }), result)
    }
}

impl<F, T, E> Write for Waiting<F, T, E>
where
    F: FnOnce(&Tx<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn is_append(&self) -> bool {
        self.is_append
    }

    fn run(&mut self, tx: &Tx<'_>) -> bool {
        if let Some(work) = self.work.take() {
            self.result = Some(work(tx));
        }
        matches!(self.result, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, committed: Result<(), &'static str>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Err(_), Some(Err(own))) => Err(own),
            (Err(code), _) => Err(Error::NotDurable(code).into()),
            (Ok(()), None) => Err(if self.work.is_some() { Error::Closed } else { Error::Panicked }.into()),
        };
        // The caller may have left; its write stands all the same.
        let _ = self.caller.send(result);
    }
}

/// Appended writes that are not followed up.
struct Ahead {
    writes: usize,
    /// Since when there are any.
    since: Instant,
    pace: Pace,
}

/// How fast appended writes come.
struct Pace {
    since: Instant,
    writes: usize,
    is_flood: bool,
}

impl Pace {
    fn note(&mut self, writes: usize) {
        self.writes += writes;
        let took = self.since.elapsed();
        if took >= SPAN {
            let is_flood = self.writes as f64 / took.as_secs_f64() > FLOOD;
            *self = Self { since: Instant::now(), writes: 0, is_flood };
        }
    }
}

/// How many appended writes a transaction follows up in which `came` of them came, when `waiting` wait, the oldest for
/// `waited`.
fn part(waiting: usize, came: usize, is_flood: bool, waited: Duration) -> usize {
    if waiting >= MOST_WAITING || is_flood && waited >= LONGEST_WAIT {
        PART
    } else if came == 0 {
        QUIET_BIT.min(waiting)
    } else if is_flood {
        0
    } else {
        waiting.min(came + BIT)
    }
}

/// The writer at work.
pub(super) struct Writer {
    /// None after a failure, until the state is opened anew.
    pub connection: Option<Connection>,
    pub path: PathBuf,
    pub keys: Option<MasterKeys>,
    pub checkpoints: Checkpoints,
    pub shared: Arc<Shared>,
}

impl Writer {
    /// Writes what comes, until every sender is gone; waits on `runtime`, which nobody else uses.
    pub(super) fn run(mut self, mut coming: mpsc::Receiver<Box<dyn Write>>, runtime: &Runtime) {
        let now = Instant::now();
        let mut ahead = Ahead { writes: 0, since: now, pace: Pace { since: now, writes: 0, is_flood: false } };
        let mut done: Vec<Box<dyn Write>> = Vec::new();
        let mut wait = QUIET;
        loop {
            let next = if ahead.writes == 0 {
                coming.blocking_recv()
            } else {
                runtime.block_on(async { timeout(wait, coming.recv()).await }).ok().flatten()
            };
            if next.is_none() && coming.is_closed() && coming.is_empty() && (ahead.writes == 0 || wait == AFTER_FAILURE)
            {
                // What cannot be followed up now is at the next start.
                return;
            }
            let is_quiet = next.is_none();
            let committed = self.write_together(next, &mut coming, &mut done, &mut ahead).map_err(|error| {
                tracing::error!(code = error.code(), "the state could not be written: {error}");
                if error.code() == DAMAGED {
                    self.shared.is_damaged.store(true, Ordering::Relaxed);
                }
                error.code()
            });
            wait = match committed {
                Err(_) => AFTER_FAILURE,
                // Part after part is followed up, unless somebody comes in between.
                Ok(()) if is_quiet => Duration::ZERO,
                Ok(()) => QUIET,
            };
            metrics::histogram!("vinculo_state_writes_per_commit").record(done.len() as f64);
            for write in done.drain(..) {
                write.answer(committed);
            }
            self.checkpoints.note_commit();
        }
    }

    /// Writes `next` and what else waits in one transaction; without a `next`, only follows up. Every write that was
    /// taken is in `done` afterwards, whatever happened.
    fn write_together(
        &mut self,
        next: Option<Box<dyn Write>>,
        coming: &mut mpsc::Receiver<Box<dyn Write>>,
        done: &mut Vec<Box<dyn Write>>,
        ahead: &mut Ahead,
    ) -> Result<(), Error> {
        done.extend(next);
        let mut connection = self.connection.take().map_or_else(|| connect(&self.path), Ok)?;
        let before = ahead.writes;
        let written = self.write_on(&mut connection, coming, done, ahead);
        // After a failed sync the kernel may have dropped the pages and would report the next one as good: only a new
        // connection knows what the disk really has.
        match written {
            Ok(has_followed_up) => {
                self.connection = Some(connection);
                if has_followed_up {
                    self.shared.followed_up.send_replace(());
                }
                Ok(())
            }
            Err(error) => {
                // Whether the commit is on the disk is not known: rows that may be there are looked for.
                ahead.writes = before + done.iter().filter(|write| write.is_append()).count();
                Err(error)
            }
        }
    }

    /// Says whether anything was followed up.
    fn write_on(
        &self,
        connection: &mut Connection,
        coming: &mut mpsc::Receiver<Box<dyn Write>>,
        done: &mut Vec<Box<dyn Write>>,
        ahead: &mut Ahead,
    ) -> Result<bool, Error> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let started = Instant::now();
        let tx = Tx::new(&transaction, self.keys.as_ref());
        let mut has_followed_up = false;
        let mut at = 0;
        while let Some(write) = done.get_mut(at) {
            if write.is_append() {
                if ahead.writes == 0 {
                    ahead.since = started;
                }
                ahead.writes += 1;
            } else {
                has_followed_up |= self.follow_all_up(&tx, ahead)?;
            }
            tx.attempt(|| write.run(&tx))?;
            at += 1;
            if started.elapsed() < GATHER_FOR {
                done.extend(coming.try_recv().ok());
            }
        }
        let came = done.iter().filter(|write| write.is_append()).count();
        ahead.pace.note(came);
        let is_last = done.is_empty() && coming.is_closed();
        let part = if is_last { PART } else { part(ahead.writes, came, ahead.pace.is_flood, ahead.since.elapsed()) };
        if part > 0 && ahead.writes > 0 {
            has_followed_up |= self.follow_some_up(&tx, ahead, part)?;
        }
        drop(tx);
        transaction.commit()?;
        Ok(has_followed_up)
    }

    fn follow_all_up(&self, tx: &Tx<'_>, ahead: &mut Ahead) -> Result<bool, Error> {
        let has_any = ahead.writes > 0;
        while ahead.writes > 0 {
            self.follow_some_up(tx, ahead, PART)?;
        }
        Ok(has_any)
    }

    /// Follows up `part` of the appended rows at most; says whether there were any.
    fn follow_some_up(&self, tx: &Tx<'_>, ahead: &mut Ahead, part: usize) -> Result<bool, Error> {
        let done = self.shared.follow_up.get().map_or(Ok(0), |follow_up| follow_up(tx, part))?;
        // A write that failed has appended nothing.
        ahead.writes = if done == 0 { 0 } else { ahead.writes.saturating_sub(done) };
        Ok(done > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::{PART, Pace, QUIET_BIT, part};
    use crate::store::{Error, Store, Tx, args};

    /// Rows are values of `meta`; what follows from one that is new is that it is done.
    fn follow_up(tx: &Tx<'_>, most: usize) -> Result<usize, Error> {
        let most = i64::try_from(most.min(70)).unwrap_or_default();
        tx.execute(
            "UPDATE meta SET value = 'done' WHERE name IN (SELECT name FROM meta WHERE value = 'new' LIMIT $1)",
            args![most],
        )
    }

    fn count(tx: &Tx<'_>, value: &str) -> Result<Option<i64>, Error> {
        tx.one("SELECT count(*) FROM meta WHERE value = $1", args![value], |row| row.int(0))
    }

    async fn open() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        store.follow_up_by(follow_up).await.unwrap();
        (folder, store)
    }

    /// Appends rows, all at once.
    async fn append(store: &Store, rows: usize) {
        let appending = (0..rows).map(|number| {
            let store = store.clone();
            async move {
                let name = format!("row {number}");
                let insert = "INSERT INTO meta (name, value) VALUES ($1, 'new')";
                store.append(move |tx| tx.execute(insert, args![&name])).await.unwrap();
            }
        });
        appending.collect::<JoinSet<_>>().join_all().await;
    }

    #[test]
    fn appended_rows_are_followed_up_at_once_bit_by_bit_or_in_a_flood_a_moment_later() {
        let (new, old) = (Duration::from_millis(20), Duration::from_millis(700));
        for (waiting, came, is_flood, waited, expected) in [
            (0, 0, false, old, 0),
            (3, 3, false, new, 3),
            // What waits gets less, however many come.
            (900, 200, false, old, 328),
            (20_000, 1, false, old, PART),
            (900, 200, true, new, 0),
            (900, 200, true, old, PART),
            (20_000, 200, true, new, PART),
            // Nobody comes.
            (300, 0, true, new, 300),
            (3_000, 0, false, old, QUIET_BIT),
        ] {
            assert_eq!(part(waiting, came, is_flood, waited), expected, "{waiting} {came} {is_flood} {waited:?}");
        }
    }

    #[test]
    fn a_flood_is_a_rate_and_no_stall() {
        let pace = |seconds: f64, writes| {
            let since = Instant::now().checked_sub(Duration::from_secs_f64(seconds)).unwrap();
            let mut pace = Pace { since, writes: 0, is_flood: false };
            pace.note(writes);
            pace.is_flood
        };
        assert!(pace(0.1, 1_000));
        assert!(!pace(0.1, 300));
        assert!(!pace(2.0, 1_000), "a stall of two seconds at 500 a second");
    }

    #[tokio::test]
    async fn whoever_writes_sees_everything_followed_up_that_was_appended_before() {
        let (_folder, store) = open().await;
        append(&store, 500).await;
        let (new, done) = store.write(|tx| Ok((count(tx, "new")?, count(tx, "done")?))).await.unwrap();
        assert_eq!((new, done), (Some(0), Some(500)));
    }

    #[tokio::test]
    async fn what_was_appended_is_followed_up_although_nobody_writes() {
        let (_folder, store) = open().await;
        let mut followed_up = store.followed_up();
        append(&store, 500).await;
        let all = async {
            while store.read(|tx| count(tx, "new")).await.unwrap() != Some(0) {
                followed_up.changed().await.unwrap();
            }
        };
        timeout(Duration::from_secs(10), all).await.unwrap();
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_followed_up_is_left_for_the_next_start() {
        let (folder, store) = open().await;
        let path = folder.path().join("state.db");
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
        let store = Store::open(&path).unwrap();
        // Once rows are there, nothing follows from them.
        let fails = |tx: &Tx<'_>, _most: usize| if count(tx, "new")? > Some(0) { Err(Error::Busy) } else { Ok(0) };
        store.follow_up_by(fails).await.unwrap();
        let insert = "INSERT INTO meta (name, value) VALUES ('row', 'new')";
        let kept = store.append(move |tx| tx.execute(insert, args![])).await;
        assert!(matches!(kept, Err(Error::NotDurable("state_busy"))), "{kept:?}");
        let closing = tokio::task::spawn_blocking(move || store.close());
        timeout(Duration::from_secs(10), closing).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_few_rows_are_followed_up_in_the_commit_that_they_came_with() {
        let (_folder, store) = open().await;
        append(&store, 1).await;
        assert_eq!(store.read(|tx| count(tx, "done")).await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_write_that_panics_fails_alone() {
        let (_folder, store) = open().await;
        let set = "INSERT INTO meta (name, value) VALUES ($1, 'set')";
        let panicking = store.write(move |tx| {
            tx.execute(set, args!["half"])?;
            if tx.change()? > 0 { panic!("on purpose") } else { Ok(()) }
        });
        let other = store.write(move |tx| tx.execute(set, args!["whole"]));
        let (panicking, other) = tokio::join!(panicking, other);
        assert!(matches!(panicking, Err(Error::Panicked)), "{panicking:?}");
        assert_eq!(other.unwrap(), 1);
        assert_eq!(store.write(|tx| count(tx, "set")).await.unwrap(), Some(1));
    }
}
