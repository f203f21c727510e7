//! One person, everywhere: what is held, and how it goes.
//!
//! *Takes* a link, an `external_id` or a person's key. *Gives* a plan, and once it is done a receipt that names nobody.
//! *Promises* that an erasure which was begun is finished, by whoever opens the state next; that afterwards no byte of
//! the person is in the state, its log or the lake; and that nothing brings the links back. *Not here*: backups and
//! copies that others made; the receipt lists the backups that this program knows of.
//!
//! The steps, each durable before the next: the wish is noted (`asked`); rows, keys and bodies go and tombstones come,
//! in one transaction (`removed`); the lake is built anew and every older snapshot is dropped, because only clocks
//! could tell which ones showed the person, and clocks jump (`published`); the log is emptied, the file looked through,
//! and the receipt written (`done`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::backup;
use crate::belvo::links::Deletion;
use crate::clock::Clock;
use crate::deadlines::Deadlines;
use crate::delete::{self, Deleter};
use crate::lane::{in_background, result_of};
use crate::link_id::LinkId;
use crate::problems::Problems;
use crate::publish::{self, Forgotten, Publisher, Scope};
use crate::sensitive::Pepper;
use crate::store::{self, Store, Traces, args};
use crate::subject::{Subject, is_of_another};
use crate::tombstones::{self, Tombstones};

mod again;
mod begun;
mod error;
mod plan;
mod receipt;
mod removal;
mod step;

pub use again::{Again, erase_again, learn};
pub use begun::Begun;
pub use error::Error;
pub use plan::{Plan, plan};
pub use receipt::{BackupToGo, Receipt, receipts_of};
pub use removal::remove;
pub use step::Step;

use removal::{Intent, bury};
use step::{OnRecord, conclude, note_step};

/// Backups that hold the person must be gone so long after the erasure.
const BACKUPS_GO_WITHIN: Duration = Duration::from_hours(30 * 24);

/// How long Belvo usually takes to delete a link, generously.
const BELVO_DELETES_WITHIN: Duration = Duration::from_secs(30);

/// Pause between two looks whether Belvo has deleted it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Wait before an erasure that failed is gone on with; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_mins(10);

/// Stands while an erasure that has failed is not done.
pub const ERASURE_UNFINISHED: &str = "erasure_unfinished";

/// Erases. Cheap to clone.
#[derive(Clone)]
pub struct Eraser {
    store: Store,
    publisher: Arc<Publisher>,
    /// None where Belvo is not talked to.
    deleter: Option<Deleter>,
    /// After so long, Belvo's word that it is deleting a link is taken for the deletion itself.
    deletes_within: Duration,
    pepper: Option<Pepper>,
    state: PathBuf,
    clock: Clock,
    /// Takes over what an order could not finish.
    left: mpsc::UnboundedSender<Unfinished>,
    /// Held from reading the tombstones of the state until their files are written: erasures go on side by side, and
    /// one that had read fewer than another would take them away again.
    files: Arc<Mutex<()>>,
}

/// An erasure that was begun and is not done.
#[derive(Clone)]
pub struct Unfinished {
    erasure: String,
    /// Empty when an earlier process began the erasure and took them with it: then the state's file is written anew.
    traces: Traces,
    /// Whether Belvo, which may take long, is to be asked first.
    waits_for_belvo: bool,
    /// How long to wait before it is gone on with.
    pause: Backoff,
}

impl Unfinished {
    /// An erasure of which nothing but its id is known, to be gone on with at once.
    fn new(erasure: String) -> Self {
        let pause = Backoff::new(FIRST_RETRY, LAST_RETRY);
        Self { erasure, traces: Traces::default(), waits_for_belvo: false, pause }
    }

    /// Whether it was gone on with before, and failed.
    fn has_failed(&self) -> bool {
        !self.pause.wait().is_zero()
    }

    /// The same, which was gone on with and failed.
    fn failed(mut self) -> Self {
        self.pause.next_wait();
        self
    }
}

impl Eraser {
    /// An eraser for the state at `state`, open as `store`, and the lake behind `publisher`; and a receiver of the
    /// erasures that its orders leave unfinished, for [`Eraser::run`]. Without a `deleter` nothing is deleted at Belvo.
    pub fn new(
        store: Store,
        publisher: Arc<Publisher>,
        deleter: Option<Deleter>,
        pepper: Option<Pepper>,
        state: &Path,
        clock: Clock,
    ) -> (Self, mpsc::UnboundedReceiver<Unfinished>) {
        let (left, unfinished) = mpsc::unbounded_channel();
        let (state, files) = (state.to_owned(), Arc::default());
        let deletes_within = BELVO_DELETES_WITHIN;
        (Self { store, publisher, deleter, deletes_within, pepper, state, clock, left, files }, unfinished)
    }

    /// What erasing `subject` would remove. Nothing is written.
    ///
    /// # Errors
    /// [`Error::Subject`], [`Error::Store`].
    pub async fn plan(&self, subject: Subject) -> Result<Plan, Error> {
        let (readers, pepper) = (self.store.readers(), self.pepper.clone());
        let mut plan = in_background(move || readers.read(|tx| plan(tx, subject, pepper.as_ref()))).await?;
        self.ensure_lake_is_own().await?;
        plan.snapshots = self.publisher.snapshots()?;
        plan.backups = backup::made(&self.state);
        Ok(plan)
    }

    /// Finishes the erasure of `plan` that [`Eraser::wish`] gave and that is on record. If Belvo accepts none of it,
    /// the wish is withdrawn and the caller is told. After any other failure [`Eraser::run`] goes on with the erasure.
    ///
    /// # Errors
    /// [`Error::Belvo`], [`Error::Unfinished`]. After a crash whoever opens the state next goes on with it.
    pub async fn erase(&self, erasure: &str, plan: &Plan) -> Result<(), Error> {
        match self.go_on(erasure, &plan.traces).await {
            Ok(()) => Ok(()),
            Err(error @ Error::Belvo(_)) if self.take_back(erasure).await.is_ok() => Err(error),
            Err(error) => {
                let traces = plan.traces.clone();
                self.leave(Unfinished { traces, ..Unfinished::new(erasure.to_owned()) }.failed());
                Err(Error::Unfinished(Box::new(error)))
            }
        }
    }

    /// Hands an erasure to [`Eraser::run`]. A command that ends now has nobody who takes it; the next start does.
    fn leave(&self, unfinished: Unfinished) {
        let _ = self.left.send(unfinished);
    }

    /// Does all steps of an erasure that are left.
    async fn go_on(&self, erasure: &str, traces: &Traces) -> Result<(), Error> {
        while !self.step(erasure, traces).await?.is_done() {}
        Ok(())
    }

    /// Forgets a wish of which nothing was done.
    async fn take_back(&self, erasure: &str) -> Result<(), store::Error> {
        let id = erasure.to_owned();
        let take_back = "DELETE FROM erasures WHERE erasure = $1 AND step = $2";
        self.store.write(move |tx| tx.execute(take_back, args![&id, Step::Asked.name()])).await.map(drop)
    }

    /// Removes the rows of erasures that were begun, unless Belvo is to be asked first: nobody reads or writes the
    /// state yet. Gives all that are not done, for [`Eraser::run`]; one that cannot be gone on with now is among them.
    ///
    /// # Errors
    /// [`Error::Store`], when the state cannot be read.
    pub async fn resume(&self) -> Result<Vec<Unfinished>, Error> {
        let mut unfinished = Vec::new();
        for Begun { erasure, step, intent, .. } in self.store.read(Begun::all).await? {
            // The intent exists only until the first step is done; after that Belvo has been asked.
            let waits_for_belvo = Intent::of_record(intent.as_deref()).is_some_and(|intent| intent.is_remote);
            if waits_for_belvo {
                if self.deleter.is_none() {
                    warn_unfinished(&erasure, &Error::NeedsBelvo);
                }
            } else {
                tracing::warn!(code = "erasure_resumed", erasure, "an erasure was interrupted and goes on now");
                if step == Step::Asked
                    && let Err(error) = self.remove(&erasure).await
                {
                    warn_unfinished(&erasure, &error);
                }
            }
            unfinished.push(Unfinished { waits_for_belvo, ..Unfinished::new(erasure) });
        }
        Ok(unfinished)
    }

    /// Finishes those of `unfinished` that need not wait for Belvo, for a command, which may end before [`Eraser::run`]
    /// does. Gives those that are not done then.
    pub async fn finish_now(&self, unfinished: Vec<Unfinished>) -> Vec<Unfinished> {
        let mut left = Vec::new();
        for one in unfinished {
            if one.waits_for_belvo {
                left.push(one);
            } else if let Err(error) = self.go_on(&one.erasure, &one.traces).await {
                warn_unfinished(&one.erasure, &error);
                left.push(one.failed());
            }
        }
        left
    }

    /// Finishes the erasures `begun` and those that orders have `left`, until `shutdown`. What fails is tried again
    /// after a pause, stands among the `problems` until it is done, and holds up no other; a wish that Belvo refuses is
    /// taken back, as [`Eraser::erase`] does.
    pub async fn run(
        self,
        begun: Vec<Unfinished>,
        mut left: mpsc::UnboundedReceiver<Unfinished>,
        problems: Problems,
        shutdown: CancellationToken,
    ) {
        for Unfinished { erasure, .. } in begun.iter().filter(|one| one.waits_for_belvo) {
            tracing::warn!(
                code = "erasure_resumed",
                erasure,
                "an erasure was interrupted and goes on: Belvo is asked first"
            );
        }
        // Those that have failed once, and are not done.
        let mut failing: BTreeSet<String> =
            begun.iter().filter(|one| one.has_failed()).map(|one| one.erasure.clone()).collect();
        let mut going: JoinSet<_> = begun.into_iter().map(|one| self.clone().persist(one)).collect();
        let finishing = async {
            loop {
                if failing.is_empty() {
                    problems.clear(ERASURE_UNFINISHED);
                } else {
                    problems.raise(ERASURE_UNFINISHED);
                }
                let unfinished = tokio::select! {
                    Some(one) = left.recv() => one,
                    Some(ended) = going.join_next() => match result_of(ended) {
                        Ok(erasure) => {
                            failing.remove(&erasure);
                            continue;
                        }
                        Err(one) => one,
                    }
                };
                if unfinished.has_failed() {
                    failing.insert(unfinished.erasure.clone());
                }
                going.spawn(self.clone().persist(unfinished));
            }
        };
        shutdown.run_until_cancelled(finishing).await;
    }

    /// Goes on with an erasure, and gives its id when it is done or given up, and otherwise what is to be gone on with
    /// later.
    async fn persist(self, unfinished: Unfinished) -> Result<String, Unfinished> {
        sleep(unfinished.pause.wait()).await;
        let Unfinished { erasure, traces, .. } = &unfinished;
        let Err(error) = self.go_on(erasure, traces).await else { return Ok(unfinished.erasure) };
        if error.is_refusal() && self.take_back(erasure).await.is_ok() {
            tracing::error!(code = error.code(), erasure, "an erasure is given up: {error}");
            return Ok(unfinished.erasure);
        }
        warn_unfinished(erasure, &error);
        Err(unfinished.failed())
    }

    /// The wish to erase what `plan` says, for `reason`, at Belvo too when `is_remote`. It counts once it is put on
    /// record.
    ///
    /// # Errors
    /// [`Error::Publish`] when the lake is not this state's to build anew, [`Error::Tombstones`] when the file of those
    /// is not its own, [`Error::Subject`] when it names persons and there is no `pii.pepper`, [`Error::Store`].
    pub async fn wish(&self, plan: &Plan, reason: &str, is_remote: bool) -> Result<Begun, Error> {
        self.ensure_lake_is_own().await?;
        let asked_at = self.clock.now();
        let again = {
            let _files = self.files.lock().await;
            learn(&self.store, &self.state, self.pepper.clone(), asked_at).await?
        };
        if let Some(erasure) = again.erasure {
            self.leave(Unfinished::new(erasure));
        }
        let named = match &plan.subject {
            Subject::Link(_) => None,
            Subject::ExternalId(name) | Subject::Person(name) => Some((plan.subject.kind(), name.clone())),
        };
        let intent = Intent { links: plan.links.clone(), external_ids: plan.external_ids.clone(), named, is_remote };
        let receipt = Receipt {
            erasure: new_id(),
            asked_at: asked_at.to_string(),
            asked_for: plan.subject.kind().name().to_owned(),
            reason: reason.to_owned(),
            links: plan.links.len(),
            ..Receipt::default()
        };
        Ok(Begun::new(&receipt, asked_at, Step::Asked, Some(json!(intent).to_string())))
    }

    /// Does the next step of an erasure, and gives the one that it has reached.
    ///
    /// # Errors
    /// [`Error`]; the step can be done again.
    pub async fn step(&self, erasure: &str, traces: &Traces) -> Result<Step, Error> {
        let id = erasure.to_owned();
        let sql = "SELECT step FROM erasures WHERE erasure = $1";
        let found = self.store.read(move |tx| tx.one(sql, args![&id], |row| Step::by_name(row.str(0)?))).await?;
        match found {
            Some(Step::Asked) => self.remove(erasure).await,
            Some(Step::Removed) => self.publish(erasure).await,
            Some(Step::Published) => self.finish(erasure, traces).await,
            // A wish that was taken back leaves nothing to do.
            Some(Step::Done) | None => Ok(Step::Done),
        }
    }

    /// Rows, keys and bodies go, and tombstones come.
    async fn remove(&self, erasure: &str) -> Result<Step, Error> {
        let id = erasure.to_owned();
        let OnRecord { asked_at, intent, mut receipt } = self.store.read(move |tx| OnRecord::of(tx, &id)).await?;
        let mut intent = intent.ok_or(store::Error::Unreadable("an erasure's plan"))?;
        if intent.is_remote {
            receipt.remote = Some(self.delete_at_belvo(&intent.links).await?);
        }
        let now = self.clock.now();
        self.store
            .write(move |tx| {
                // Whoever connected again while Belvo was waited for did so after the wish.
                let mut external_ids = Vec::new();
                for external_id in std::mem::take(&mut intent.external_ids) {
                    if !is_of_another(tx, &external_id, &intent.links)? {
                        external_ids.push(external_id);
                    }
                }
                intent.external_ids = external_ids;
                receipt.rows = remove(tx, &intent.links, &intent.external_ids)?;
                receipt.tombstones = bury(tx, &intent, asked_at, now)?;
                note_step(tx, Step::Removed, &receipt)
            })
            .await?;
        Ok(Step::Removed)
    }

    /// What Belvo says of each link.
    async fn delete_at_belvo(&self, links: &[String]) -> Result<Vec<String>, Error> {
        let deleter = self.deleter.as_ref().ok_or(Error::NeedsBelvo)?;
        let mut said = Vec::new();
        for link in links {
            let link: LinkId = link.parse().map_err(|_| store::Error::Unreadable("a link id"))?;
            // What Belvo has taken is not taken back here: the links that are deleted there are to be erased.
            let taken = said.len();
            let failed = |error| match error {
                delete::Error::Store(error) => Error::Store(error),
                error if taken == 0 => Error::Belvo(Box::new(error)),
                error => Error::BelvoPartly { taken, links: links.len(), source: Box::new(error) },
            };
            let mut is_gone = deleter.delete(&link).await.map_err(failed)? == Deletion::Done;
            if !is_gone {
                // A look may wait for as long as Belvo asks, and follows up other wishes, too.
                let looked = timeout(self.deletes_within, until_gone(deleter, &link)).await;
                is_gone = looked.unwrap_or(Ok(false)).map_err(failed)?;
            }
            said.push(if is_gone { "deleted" } else { "accepted" }.to_owned());
        }
        Ok(said)
    }

    /// Tombstones go to their files, and the lake is built anew, without the person.
    async fn publish(&self, erasure: &str) -> Result<Step, Error> {
        self.write_tombstones().await?;
        let mut receipt = self.receipt_of(erasure).await?;
        // The volume may have been changed since it was asked for, or the state put back.
        self.ensure_lake_is_own().await?;
        // Also where a lake has lost its link to the current one.
        if !self.publisher.snapshots()?.is_empty() {
            publish::publish_in_background(&self.publisher, Scope::Everything).await?;
            let publisher = Arc::clone(&self.publisher);
            let older = in_background(move || publisher.older()).await?;
            let going: Vec<_> = older.iter().map(|older| older.snapshot).collect();
            // On record before they go: when a crash or a failure comes in between, the next try finds only what is
            // left.
            let is_new = |older: &Forgotten| receipt.snapshots.iter().all(|known| known.snapshot != older.snapshot);
            let new: Vec<_> = older.into_iter().filter(is_new).collect();
            receipt.snapshots.extend(new);
            receipt.published = self.publisher.current();
            let (publisher, so_far) = (Arc::clone(&self.publisher), receipt.clone());
            self.store.write(move |tx| note_step(tx, Step::Removed, &so_far)).await?;
            in_background(move || publisher.forget(&going)).await?;
        }
        self.store.write(move |tx| note_step(tx, Step::Published, &receipt)).await?;
        Ok(Step::Published)
    }

    /// Writes the file of tombstones beside the state, and those beside the backups.
    async fn write_tombstones(&self) -> Result<(), Error> {
        let _files = self.files.lock().await;
        let Some(tombstones) = self.store.read(Tombstones::of).await? else { return Ok(()) };
        tombstones.write(&tombstones::file_of(&self.state))?;
        // Whoever restores one of these elsewhere finds them there too, unless the backup was moved. One that is half
        // done is no backup, and told of once it is whole.
        for made in backup::made(&self.state).iter().filter(|made| made.is_whole()) {
            if let Err(error) = tombstones.write(&tombstones::file_of_backup(Path::new(&made.file))) {
                tracing::warn!(code = "backup_not_marked", "a backup cannot be told of the erasure: {error}");
            }
        }
        Ok(())
    }

    /// An erasure builds the whole lake anew and drops what was there, as only a rebuild may do with another state's
    /// lake.
    async fn ensure_lake_is_own(&self) -> Result<(), publish::Error> {
        let publisher = Arc::clone(&self.publisher);
        in_background(move || publisher.may_replace()).await
    }

    /// The log is emptied, the state's file looked through, and the receipt written.
    async fn finish(&self, erasure: &str, traces: &Traces) -> Result<Step, Error> {
        let scrubbed = self.store.scrub(traces.clone()).await?;
        let now = self.clock.now();
        let mut receipt = self.receipt_of(erasure).await?;
        // One that was concluded and whose files could not be written stays as it was.
        if receipt.audit_hash.is_empty() {
            let backups = backup::made(&self.state).into_iter().map(|made| BackupToGo {
                file: made.file,
                made_at: made.made_at,
                gone_by: (now + BACKUPS_GO_WITHIN).to_string(),
            });
            receipt.backups = backups.collect();
            receipt.state_rewritten = scrubbed.is_compacted;
            receipt.traces_left = scrubbed.left;
            receipt.finished_at = now.to_string();
            receipt = self.store.write(move |tx| conclude(tx, receipt, now)).await?;
        }
        receipt::write(&self.state, &receipt)?;
        let done = receipt.clone();
        self.store.write(move |tx| note_step(tx, Step::Done, &done)).await?;
        metrics::counter!("vinculo_erasures_total").increment(1);
        tracing::info!(erasure, links = receipt.links, "erased");
        Ok(Step::Done)
    }

    /// What was done so far.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn receipt_of(&self, erasure: &str) -> Result<Receipt, Error> {
        let id = erasure.to_owned();
        Ok(self.store.read(move |tx| OnRecord::of(tx, &id)).await?.receipt)
    }
}

/// Whether Belvo has deleted the link, as soon as it has. A look that was begun goes on to its end, also when nobody
/// waits any more: it may be about the wishes of others.
async fn until_gone(deleter: &Deleter, link: &LinkId) -> Result<bool, delete::Error> {
    loop {
        sleep(LOOK_AGAIN).await;
        let looking = deleter.clone();
        result_of(tokio::spawn(async move { looking.follow_up().await }).await)?;
        if deleter.is_gone(link).await? {
            return Ok(true);
        }
    }
}

fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn warn_unfinished(erasure: &str, error: &Error) {
    tracing::warn!(code = error.code(), erasure, "an erasure is not finished yet: {error}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Timestamp;
    use crate::config::{self, LakeForm};
    use crate::queue::Queue;
    use crate::store::Tx;
    use crate::tombstones::Kind;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    const OTHER: &str = "3f5d361d-dad6-45d4-a0bf-26d479766067";

    /// The same, which waits for nothing.
    fn at_once(mut unfinished: Unfinished) -> Unfinished {
        unfinished.pause.reset();
        unfinished
    }

    /// A state, and a lake that another one may publish to, too.
    struct Place {
        folder: tempfile::TempDir,
        store: Store,
        publisher: Arc<Publisher>,
        eraser: Eraser,
        left: mpsc::UnboundedReceiver<Unfinished>,
    }

    impl Place {
        fn new() -> Self {
            Self::beside(tempfile::tempdir().unwrap(), "state.db")
        }

        fn beside(folder: tempfile::TempDir, name: &str) -> Self {
            let path = folder.path().join(name);
            let store = Store::open(&path).unwrap();
            let settings = config::Lake::small(folder.path().join("lake"), &[LakeForm::Parquet]);
            let clock = Clock::from_fn(|| Timestamp::from_micros(1_000_000_000));
            let publisher = Publisher::open(store.clone(), settings, Duration::ZERO, None, clock.clone()).unwrap();
            let publisher = Arc::new(publisher);
            let (eraser, left) = Eraser::new(store.clone(), Arc::clone(&publisher), None, None, &path, clock);
            Self { folder, store, publisher, eraser, left }
        }

        async fn has_link(&self, external_id: Option<&'static str>) {
            let insert = "INSERT INTO links (link_id, external_id, first_seen_at, changed_seq) VALUES ($1, $2, 7, $3)";
            self.store.write(move |tx| tx.execute(insert, args![LINK, external_id, tx.change()?])).await.unwrap();
        }

        /// Another state publishes a link into the lake, which is its own from then on.
        async fn is_taken_over(&self) -> Self {
            let other = Self::beside(tempfile::tempdir().unwrap(), "other.db");
            other.has_link(None).await;
            publish::publish_in_background(&other.publisher, Scope::Everything).await.unwrap();
            let (from, lake) = (other.folder.path().join("lake"), self.folder.path().join("lake"));
            std::fs::remove_dir_all(&lake).unwrap();
            std::fs::rename(from, lake).unwrap();
            other
        }

        async fn ask(&self, subject: Subject) -> Result<(String, Plan), Error> {
            let plan = self.eraser.plan(subject).await?;
            let wish = self.eraser.wish(&plan, "ticket 1", false).await?;
            let erasure = wish.erasure.clone();
            self.store.write(move |tx| wish.keep(tx)).await?;
            Ok((erasure, plan))
        }

        async fn count(&self, sql: &'static str) -> i64 {
            self.store.read(move |tx| tx.one(sql, args![], |row| row.int(0))).await.unwrap().unwrap()
        }
    }

    fn link() -> Subject {
        Subject::Link(LINK.parse().unwrap())
    }

    #[tokio::test]
    async fn nobody_is_erased_from_a_state_whose_lake_is_another_ones() {
        let place = Place::new();
        place.has_link(None).await;
        let _other = place.is_taken_over().await;
        assert_eq!(place.ask(link()).await.err().unwrap().code(), "foreign_lake");
        assert_eq!(place.count("SELECT count(*) FROM erasures").await, 0);
        assert_eq!(place.count("SELECT count(*) FROM links").await, 1);
    }

    #[tokio::test]
    async fn an_erasure_leaves_the_lake_alone_that_is_another_states_meanwhile_and_ends_once_it_may() {
        let mut place = Place::new();
        place.has_link(None).await;
        let (erasure, plan) = place.ask(link()).await.unwrap();
        let _other = place.is_taken_over().await;

        let failed = place.eraser.erase(&erasure, &plan).await.unwrap_err();
        assert_eq!(failed.code(), "foreign_lake");
        assert!(failed.to_string().contains("finishes the erasure by itself"), "{failed}");
        assert_eq!(place.count("SELECT count(*) FROM links").await, 0, "it has come as far as it may");
        let left = place.left.recv().await.unwrap();
        assert_eq!((&left.erasure, left.pause.wait()), (&erasure, FIRST_RETRY));

        // Nor does a start touch the lake, or fail.
        let begun = place.eraser.resume().await.unwrap();
        let begun = place.eraser.finish_now(begun).await;
        assert_eq!(begun.len(), 1);
        assert_eq!(place.publisher.snapshots().unwrap(), [1]);

        publish::publish_in_background(&place.publisher, Scope::Everything).await.unwrap().expect("it was ordered");
        let shutdown = CancellationToken::new();
        let begun = vec![at_once(left)];
        let running = tokio::spawn(place.eraser.clone().run(begun, place.left, Problems::default(), shutdown.clone()));
        while place.store.read(Begun::count).await.unwrap() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
        running.await.unwrap();
        assert_eq!(place.publisher.snapshots().unwrap(), [3], "the other state's went when that was ordered for");
        assert!(receipts_of(&place.folder.path().join("state.db"), &erasure).iter().all(|file| file.exists()));
    }

    #[tokio::test]
    async fn an_erasure_that_fails_stands_among_the_problems_until_it_is_done() {
        let place = Place::new();
        place.has_link(None).await;
        let (erasure, plan) = place.ask(link()).await.unwrap();
        let receipts = place.folder.path().join("erasures");
        std::fs::write(&receipts, "no folder").unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap_err();

        let (problems, shutdown) = (Problems::default(), CancellationToken::new());
        let running = place.eraser.clone().run(Vec::new(), place.left, problems.clone(), shutdown.clone());
        let running = tokio::spawn(running);
        while problems.standing() != [ERASURE_UNFINISHED] {
            tokio::task::yield_now().await;
        }
        std::fs::remove_file(&receipts).unwrap();
        while !problems.standing().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(place.store.read(Begun::count).await.unwrap(), 0);
        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_start_removes_the_rows_and_leaves_the_rest_to_a_task() {
        let place = Place::new();
        place.has_link(None).await;
        publish::publish_in_background(&place.publisher, Scope::Everything).await.unwrap();
        let (erasure, _) = place.ask(link()).await.unwrap();
        let begun = place.eraser.resume().await.unwrap();
        assert_eq!(begun.iter().map(|one| one.erasure.as_str()).collect::<Vec<_>>(), [erasure.as_str()]);
        assert_eq!(place.count("SELECT count(*) FROM links").await, 0);
        assert_eq!(place.count("SELECT count(*) FROM tombstones WHERE kind = 'link'").await, 1);
        assert_eq!(place.count("SELECT count(*) FROM erasures WHERE step = 'removed'").await, 1);
        assert_eq!(place.publisher.snapshots().unwrap(), [1], "that may take long");
        assert!(place.eraser.finish_now(begun).await.is_empty());
        assert_eq!(place.publisher.snapshots().unwrap(), [2]);
    }

    #[tokio::test]
    async fn nobody_is_erased_beside_the_tombstones_of_another_state() {
        let place = Place::new();
        place.has_link(None).await;
        let (erasure, plan) = place.ask(link()).await.unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap();
        let other = Place::new();
        other.has_link(None).await;
        let file = |place: &Place| tombstones::file_of(&place.folder.path().join("state.db"));
        std::fs::copy(file(&place), file(&other)).unwrap();
        let bury = |tx: &Tx<'_>| tombstones::bury(tx, Kind::Link, "another", Timestamp::from_micros(7)).map(drop);
        other.store.write(bury).await.unwrap();
        assert_eq!(other.ask(link()).await.err().unwrap().code(), "foreign_tombstones");
        assert_eq!(other.count("SELECT count(*) FROM erasures").await, 0);
        assert_eq!(std::fs::read(file(&place)).unwrap(), std::fs::read(file(&other)).unwrap());
    }

    #[tokio::test]
    async fn a_wish_is_taken_back_only_while_belvo_has_taken_no_link() {
        // What Belvo says when it is to delete each of the two links.
        for (first, second, stays) in [(204, 403, true), (403, 204, false)] {
            let script = Script::start(move |head| match if head.contains(LINK) { first } else { second } {
                204 => b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_vec(),
                status => scripted::json(status, r#"[{"code":"permission"}]"#),
            })
            .await;
            let mut place = Place::new();
            place.has_link(Some("user-1")).await;
            let insert =
                "INSERT INTO links (link_id, external_id, first_seen_at, changed_seq) VALUES ($1, 'user-1', 7, $2)";
            place.store.write(move |tx| tx.execute(insert, args![OTHER, tx.change()?])).await.unwrap();
            let clock = place.eraser.clock.clone();
            let queue = Queue::open(place.store.clone(), clock.clone()).await.unwrap();
            let patience = delete::WITH_WEBHOOKS;
            place.eraser.deleter = Some(Deleter::new(script.client(), place.store.clone(), queue, clock, patience));

            let plan = place.eraser.plan(Subject::ExternalId("user-1".to_owned())).await.unwrap();
            let wish = place.eraser.wish(&plan, "ticket 1", true).await.unwrap();
            let erasure = wish.erasure.clone();
            place.store.write(move |tx| wish.keep(tx)).await.unwrap();
            let error = place.eraser.erase(&erasure, &plan).await.unwrap_err();
            assert_eq!(error.code(), "api_forbidden");
            assert_eq!(error.to_string().contains("nothing was erased"), !stays, "{error}");
            let begun = place.eraser.resume().await.unwrap();
            assert_eq!(begun.len(), usize::from(stays));
            if !stays {
                continue;
            }
            // Nor does a refusal end it later.
            let left = place.left.recv().await.unwrap();
            let Err(again) = place.eraser.clone().persist(at_once(left)).await else {
                panic!("it is given up");
            };
            assert_eq!((again.erasure, place.store.read(Begun::count).await.unwrap()), (erasure, 1));
        }
    }

    #[tokio::test]
    async fn belvos_last_word_is_waited_for_no_longer_than_usual_whatever_patience_belvo_asks_for() {
        let script = Script::start(|head| match head {
            head if head.starts_with("DELETE") => scripted::json(202, "{}"),
            _ => scripted::json(429, r#"[{"code":"too_many_requests"}]"#),
        })
        .await;
        let mut place = Place::new();
        place.has_link(None).await;
        let clock = place.eraser.clock.clone();
        let queue = Queue::open(place.store.clone(), clock.clone()).await.unwrap();
        let deleter = Deleter::new(script.client(), place.store.clone(), queue, clock, Duration::ZERO);
        place.eraser.deleter = Some(deleter);
        place.eraser.deletes_within = Duration::from_millis(500);
        let links = [LINK.to_owned()];
        let deleting = timeout(Duration::from_secs(20), place.eraser.delete_at_belvo(&links));
        assert_eq!(deleting.await.unwrap().unwrap(), ["accepted"]);
        assert!(script.requests().iter().any(|head| head.starts_with("GET")), "Belvo was asked, and wanted patience");
    }

    #[tokio::test]
    async fn an_erasure_beside_another_one_takes_no_tombstone_out_of_the_file() {
        let place = Place::new();
        let bury = |name: &'static str| {
            place.store.write(move |tx| tombstones::bury(tx, Kind::Link, name, Timestamp::from_micros(7)).map(drop))
        };
        bury("first").await.unwrap();
        let turn = place.eraser.files.lock().await;
        let eraser = place.eraser.clone();
        let writing = tokio::spawn(async move { eraser.write_tombstones().await });
        // While it waits for its turn, another erasure goes on.
        bury("second").await.unwrap();
        drop(turn);
        writing.await.unwrap().unwrap();
        let file = tombstones::file_of(&place.folder.path().join("state.db"));
        assert!(Tombstones::read(&file).unwrap().unwrap().erased_at(Kind::Link, "second").is_some());
    }

    #[tokio::test]
    async fn who_is_found_to_have_been_erased_when_somebody_else_is_asked_for_goes_too() {
        let mut place = Place::new();
        place.has_link(None).await;
        let other = Place::new();
        let bury = |tx: &Tx<'_>| tombstones::bury(tx, Kind::ExternalId, "user-1", Timestamp::from_micros(7)).map(drop);
        other.store.write(bury).await.unwrap();
        let known = other.store.read(Tombstones::of).await.unwrap().unwrap();
        known.write(&tombstones::file_of(&place.folder.path().join("state.db"))).unwrap();
        let session = "INSERT INTO widget_sessions (external_id, asked_at) VALUES ('user-1', 7)";
        place.store.write(move |tx| tx.execute(session, args![])).await.unwrap();

        place.ask(link()).await.unwrap();
        assert_eq!(place.count("SELECT count(*) FROM widget_sessions").await, 0);
        let left = place.left.recv().await.unwrap();
        assert!(place.eraser.finish_now(vec![left]).await.is_empty());
        assert_eq!(place.store.read(Begun::count).await.unwrap(), 1, "the wish itself");
    }

    #[tokio::test]
    async fn a_user_who_opened_the_widget_and_never_connected_is_erased_too() {
        let place = Place::new();
        let user = || Subject::ExternalId("user-1".to_owned());
        assert_eq!(place.ask(user()).await.err().unwrap().code(), "not_held");
        let fill = |tx: &Tx<'_>| {
            let sql = "INSERT INTO widget_sessions (external_id, asked_at) VALUES ($1, 7)";
            ["user-1", "user-12"].iter().try_for_each(|user| tx.execute(sql, args![*user]).map(drop))?;
            let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES (7, 'quarantined', $1)";
            tx.execute(sql, args![br#"{"external_id":"user-1"}"#.as_slice()])
        };
        place.store.write(fill).await.unwrap();
        let (erasure, plan) = place.ask(user()).await.unwrap();
        let rows = BTreeMap::from([("webhooks".to_owned(), 1), ("widget_sessions".to_owned(), 1)]);
        assert_eq!((plan.links.len(), &plan.rows), (0, &rows));
        place.eraser.erase(&erasure, &plan).await.unwrap();

        let receipt = place.eraser.receipt_of(&erasure).await.unwrap();
        assert_eq!((receipt.links, &receipt.rows), (0, &rows));
        assert_eq!(receipt.tombstones.iter().map(|one| one.kind).collect::<Vec<_>>(), [Kind::ExternalId]);
        assert!(receipt.to_string().contains("external_id (0 link(s))"), "{receipt}");
        assert_eq!(place.count("SELECT count(*) FROM widget_sessions WHERE external_id = 'user-12'").await, 1);
        assert_eq!(place.count("SELECT count(*) FROM widget_sessions").await, 1);
        assert_eq!(place.ask(user()).await.err().unwrap().code(), "not_held");
    }

    #[tokio::test]
    async fn whoever_connects_again_before_an_erasure_comes_to_them_stays() {
        let place = Place::new();
        place.has_link(Some("user-1")).await;
        let (erasure, plan) = place.ask(link()).await.unwrap();
        let again =
            "INSERT INTO links (link_id, external_id, first_seen_at, changed_seq) VALUES ('again', 'user-1', 8, $1)";
        place.store.write(move |tx| tx.execute(again, args![tx.change()?])).await.unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap();
        assert_eq!(place.count("SELECT count(*) FROM links WHERE link_id = 'again'").await, 1);
        assert_eq!(place.count("SELECT count(*) FROM tombstones WHERE kind = 'external_id'").await, 0);
    }

    #[tokio::test]
    async fn a_link_that_only_the_quarantine_names_is_erased_too() {
        let place = Place::new();
        let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES (7, 'quarantined', $1)";
        let body = format!("{{\"about\":\"{LINK}\"}}");
        place.store.write(move |tx| tx.execute(sql, args![body.as_bytes()])).await.unwrap();
        let (erasure, plan) = place.ask(link()).await.unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap();
        assert_eq!(place.count("SELECT count(*) FROM webhooks").await, 0);
        assert_eq!(place.ask(link()).await.err().unwrap().code(), "not_held");
    }

    #[tokio::test]
    async fn what_says_how_far_a_wait_has_come_names_no_erased_link() {
        let place = Place::new();
        place.has_link(None).await;
        let note = "INSERT INTO meta (name, value) VALUES ('first_data_waited_for', $1)";
        place.store.write(move |tx| tx.execute(note, args![&format!("7 {LINK}")])).await.unwrap();
        let (erasure, plan) = place.ask(link()).await.unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap();
        assert_eq!(place.count("SELECT count(*) FROM meta WHERE value LIKE '%2f5d361d%'").await, 0);
        assert_eq!(place.count("SELECT count(*) FROM meta WHERE value = '7 '").await, 1);
    }

    #[tokio::test]
    async fn whoever_of_a_person_connects_while_belvo_is_waited_for_is_not_under_the_tombstone() {
        let place = Place::new();
        let intent = Intent {
            links: vec![LINK.to_owned()],
            external_ids: Vec::new(),
            named: Some((Kind::Person, "person-1".to_owned())),
            is_remote: false,
        };
        let receipt = Receipt { erasure: new_id(), ..Receipt::default() };
        let asked_at = Timestamp::from_micros(5);
        let begun = Begun::new(&receipt, asked_at, Step::Asked, Some(json!(intent).to_string()));
        place.store.write(move |tx| begun.keep(tx)).await.unwrap();
        place.eraser.remove(&receipt.erasure).await.unwrap();
        let tombstones = place.store.read(Tombstones::of).await.unwrap().unwrap();
        assert_eq!(tombstones.erased_at(Kind::Person, "person-1"), Some(5));
        assert_eq!(tombstones.erased_at(Kind::Link, LINK), Some(1_000_000_000));
    }

    #[tokio::test]
    async fn a_receipt_names_the_snapshots_that_were_dropped_before_something_failed() {
        let place = Place::new();
        place.has_link(None).await;
        publish::publish_in_background(&place.publisher, Scope::Everything).await.unwrap();
        let (erasure, plan) = place.ask(link()).await.unwrap();
        let refuse = "CREATE TRIGGER full BEFORE UPDATE ON erasures WHEN NEW.step = 'published' \
                      BEGIN SELECT RAISE(ABORT, 'full'); END";
        place.store.write(move |tx| tx.execute(refuse, args![])).await.unwrap();
        place.eraser.erase(&erasure, &plan).await.unwrap_err();
        assert_eq!(place.publisher.snapshots().unwrap(), [2], "the first is gone");
        place.store.write(|tx| tx.execute("DROP TRIGGER full", args![])).await.unwrap();
        let begun = place.eraser.resume().await.unwrap();
        assert!(place.eraser.finish_now(begun).await.is_empty());
        let receipt = place.eraser.receipt_of(&erasure).await.unwrap();
        assert_eq!(receipt.snapshots.iter().map(|gone| gone.snapshot).collect::<Vec<_>>(), [1, 2]);
        assert!(receipt.snapshots.iter().all(|gone| !gone.files.is_empty()), "{receipt}");
        assert_eq!((receipt.published, place.publisher.snapshots().unwrap()), (Some(3), vec![3]));
    }
}
