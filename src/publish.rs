//! Staged → visible: the only door to readers.
//!
//! *Takes* one consistent view of the record store. *Gives* a new snapshot of every table, or nothing when nothing changed.
//! *Promises* that the lake is a function of the record store and the schemas: publishing into an empty folder gives the
//! same rows; that files whose rows cannot have changed are taken over and not written again; and that readers see the
//! whole of one snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;

use crate::backoff::Backoff;
use crate::clock::{Clock, Timestamp};
use crate::config::{self, LakeForm};
use crate::database;
use crate::features::explain;
use crate::lane::in_background;
use crate::problems::Problems;
use crate::schema::{self, Schema, Table};
use crate::sensitive::{Pepper, hex};
use crate::sinks::{self, Staged};
use crate::store::{self, Store, Tx, args};

mod cells;
mod delta;
mod handover;
mod held;
pub mod integrity;
mod output;
mod partitions;
mod pii;
mod snapshots;
mod tables;

pub use held::{Held, Mark};
pub use snapshots::{BuiltFrom, FileEntry, Forgotten, Lake, Manifest, TableEntry, checksum};

use cells::Split;
use delta::Delta;
use handover::Handover;
use output::Linker;
use snapshots::{Sealed, Staging};

/// Stands while the folder of the lake is as bare as the place of a volume that is not mounted.
pub const MISSING: &str = "lake_missing";

/// Stands while nothing can be published.
const PROBLEM: &str = "publish_failed";

/// Wait after a first failure to publish; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// Why a snapshot could not be published. Readers then see the one before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the lake cannot be used.
    #[error("the lake cannot be written at {path}: {source}; make room, or give this user the right to write there")]
    Folder {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The lake was published from another state, and this one may be new and empty.
    #[error(
        "the lake was published from another state than this one, so that nothing of it is replaced: put that state back \
         (`vinculo restore` does it from a backup), give this one a lake.url of its own, or run `vinculo rebuild` to publish \
         what this one holds; until then readers see the last snapshot"
    )]
    OtherState,
    /// The lake holds what this state has not seen yet.
    #[error(
        "the lake has snapshot {snapshot} of this state, from its change {change}, and the state does not know of it: an older \
         state was put back. Restore the newer one, or run `vinculo rebuild` to publish what this one holds; until then readers \
         see the last snapshot"
    )]
    OlderState {
        /// The snapshot that the state did not publish.
        snapshot: u32,
        /// Change of the state that it was built from.
        change: i64,
    },
    /// The folder of the lake is empty, or not there on its volume, as when that is not mounted.
    #[error(
        "{path} is empty or missing, and this state published snapshot {snapshot} there: mount the volume of the lake, or run \
         `vinculo rebuild` if the lake was removed on purpose; until then nothing is written there"
    )]
    Bare {
        /// The folder.
        path: PathBuf,
        /// The snapshot that was published last.
        snapshot: u32,
    },
    /// The system gave no thread.
    #[error(
        "no thread could be started: {0}; let this user have more processes (`ulimit -u`, or TasksMax of the service)"
    )]
    Thread(std::io::Error),
    /// A sink failed.
    #[error(transparent)]
    Sink(#[from] sinks::Error),
    /// The state could not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    fn at(path: &Path, source: std::io::Error) -> Self {
        Self::Folder { path: path.to_owned(), source }
    }

    /// Whether a file of the snapshot before may be the reason, which is not there or cannot be read.
    fn may_be_of_damage(&self) -> bool {
        match self {
            Self::Folder { source, .. } | Self::Sink(sinks::Error::File { source, .. }) => {
                source.kind() == std::io::ErrorKind::NotFound
            }
            Self::Sink(_) => true,
            Self::OtherState | Self::OlderState { .. } | Self::Bare { .. } | Self::Thread(_) | Self::Store(_) => false,
        }
    }

    /// The stable code of this failure, for logs, metrics and `status`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Folder { source, .. } | Self::Sink(sinks::Error::File { source, .. }) => match source.kind() {
                std::io::ErrorKind::StorageFull => "disk_full",
                _ => "lake_not_writable",
            },
            Self::OtherState => "foreign_lake",
            Self::OlderState { .. } => "state_older_than_lake",
            Self::Bare { .. } => MISSING,
            Self::Thread(_) => "no_thread",
            Self::Sink(_) => "sink_failed",
            Self::Store(error) => error.code(),
        }
    }
}

/// A publish that failed while somebody waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("nothing was published, and readers see the last snapshot: {message}")]
pub struct Unpublished {
    /// The stable code of the failure.
    pub code: &'static str,
    /// Its words.
    pub message: String,
}

impl From<&Error> for Unpublished {
    fn from(error: &Error) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

/// Publishes the record store.
pub struct Publisher {
    store: Store,
    lake: Lake,
    settings: config::Lake,
    confirm_after: Duration,
    pepper: Option<Pepper>,
    clock: Clock,
    schema: &'static Schema,
    /// Whether unmasked rows are published too, under `pii/`.
    publishes_pii: bool,
    /// One snapshot is staged at a time: two would take the same number.
    turn: Mutex<Turn>,
    /// The failure of the latest publish; `None` when it was none.
    failure: watch::Sender<Option<Unpublished>>,
}

/// What one publish leaves to the next.
#[derive(Default)]
struct Turn {
    /// The snapshot that was looked through after a failure and found whole.
    whole: Option<u32>,
}

/// Which files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those whose rows may have changed since the last snapshot; none when nothing changed.
    Changed,
    /// All.
    Everything,
}

impl Publisher {
    /// A publisher of the state `store`, where two lists `confirm_after` apart agree that a row is gone. What a crash left of
    /// what was staged is removed. In the place of a volume that is not mounted nothing is made.
    ///
    /// # Errors
    /// [`Error::Folder`] when the lake cannot be used.
    pub fn open(
        store: Store,
        settings: config::Lake,
        confirm_after: Duration,
        pepper: Option<Pepper>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let lake = Lake::look(&settings.path);
        let held = store.readers().read(|tx| Held::of(tx, &lake))?;
        if held.is_in(&lake).is_ok() {
            Lake::open(&settings.path)?;
            // In another state's lake somebody may be at work.
            if lake.last().is_none_or(|last| last.built_from.state_id == held.built_from.state_id) {
                lake.clear_staging()?;
            }
        }
        settings.reference.tell_expiries();
        let (schema, turn, failure) = (schema::get(), Mutex::default(), watch::Sender::default());
        let publishes_pii = false;
        Ok(Self { store, lake, settings, confirm_after, pepper, clock, schema, publishes_pii, turn, failure })
    }

    /// The same publisher, which also publishes unmasked rows under `pii/` when `is_wanted`.
    #[must_use]
    pub fn with_pii(self, is_wanted: bool) -> Self {
        Self { publishes_pii: is_wanted, ..self }
    }

    /// Publishes; `None` when there was nothing new. Blocks.
    ///
    /// # Errors
    /// [`Error`]; nothing staged is left behind.
    pub fn publish(&self, scope: Scope) -> Result<Option<Manifest>, Error> {
        let span =
            tracing::debug_span!("publish", everything = scope == Scope::Everything, snapshot = Empty, code = Empty);
        let published = span.in_scope(|| self.publish_inside(scope));
        match &published {
            Ok(manifest) => span.record("snapshot", manifest.as_ref().map(|manifest| manifest.snapshot)),
            Err(error) => span.record("code", error.code()),
        };
        self.failure.send_replace(published.as_ref().err().map(Unpublished::from));
        published
    }

    /// Waits until every change up to now is published, or a publish fails; other changes may come meanwhile without an end.
    /// `published` tells of the change that the latest snapshot has, as [`run`] does.
    ///
    /// # Errors
    /// [`Unpublished`]; it is tried again, but nobody knows how often.
    pub async fn until_published(self: &Arc<Self>, mut published: watch::Receiver<i64>) -> Result<(), Unpublished> {
        let mut failures = self.failure.subscribe();
        let wanted = self.store.read(BuiltFrom::of).await.map_err(|error| Unpublished::from(&error.into()))?.change;
        loop {
            if *published.borrow_and_update() >= wanted {
                return Ok(());
            }
            let this = Arc::clone(self);
            let is_behind = in_background(move || this.is_behind()).await;
            if !is_behind.map_err(|error| Unpublished::from(&error))? {
                return Ok(());
            }
            tokio::select! {
                told = published.changed() => if told.is_err() { return Ok(()) },
                Ok(()) = failures.changed() => {
                    if let Some(failure) = failures.borrow_and_update().clone() {
                        return Err(failure);
                    }
                }
            }
        }
    }

    fn publish_inside(&self, mut scope: Scope) -> Result<Option<Manifest>, Error> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.lake.current();
        if scope == Scope::Changed {
            // Before anything is touched in the lake.
            let newest = if previous.is_none() { self.lake.newest() } else { None };
            self.held()?.may_replace(&self.lake, previous.as_ref().or(newest.as_ref()))?;
        }
        self.lake.make()?;
        let mut published = self.publish_once(previous.as_ref(), scope);
        if let Err(error) = &published
            && scope == Scope::Changed
            && error.may_be_of_damage()
            && self.is_damaged(&mut turn)
        {
            tracing::warn!(
                code = "damaged_snapshot",
                "the snapshot that readers see is damaged, so that nothing of it is taken over, and all is written anew: {error}"
            );
            scope = Scope::Everything;
            published = self.publish_once(previous.as_ref(), scope);
        }
        let published = published?;
        if published.is_some() {
            // Readers see the new one already, whatever becomes of those before it; the next publish tries again.
            if let Err(error) = self.drop_older(scope) {
                tracing::warn!(code = error.code(), "an older snapshot could not be dropped: {error}");
            }
        }
        Ok(published)
    }

    /// Whether this state may replace what is in the lake: it published that itself, or nothing is lost. Blocks.
    ///
    /// # Errors
    /// [`Error::OtherState`], [`Error::OlderState`], [`Error::Bare`]; [`Error::Store`] when it cannot be known.
    pub fn may_replace(&self) -> Result<(), Error> {
        self.held()?.may_replace(&self.lake, self.lake.last().as_ref())
    }

    fn held(&self) -> Result<Held, store::Error> {
        self.store.readers().read(|tx| Held::of(tx, &self.lake))
    }

    /// Whether the lake is not there that was published into. Blocks.
    pub fn is_missing(&self) -> bool {
        self.lake.is_bare() && self.held().is_ok_and(|held| held.is_in(&self.lake).is_err())
    }

    /// Whether a file of the snapshot that readers see is not as it was published.
    fn is_damaged(&self, turn: &mut Turn) -> bool {
        let Some(current) = self.current().filter(|current| turn.whole != Some(*current)) else { return false };
        let is_whole = integrity::is_whole(&self.lake, current);
        turn.whole = is_whole.then_some(current);
        !is_whole
    }

    /// Stages a snapshot and reveals it, if there is anything new.
    fn publish_once(&self, previous: Option<&Manifest>, scope: Scope) -> Result<Option<Manifest>, Error> {
        let staging = self.lake.stage()?;
        let published = self.stage(&staging, previous, scope).and_then(|staged| {
            let Some((manifest, sealed)) = staged else { return Ok(None) };
            // Before it is seen: a state that knows of less than its lake shows is an older one.
            let (lake, snapshot) = (self.lake.clone(), staging.snapshot);
            self.store.write_blocking(move |tx| Held::note(tx, &lake, snapshot))?;
            self.lake.reveal(&staging, &sealed, &manifest)?;
            Ok(Some(manifest))
        });
        // After the rename there is nothing left to remove, unless nobody sees what was renamed: each try would leave one.
        let _ = std::fs::remove_dir_all(&staging.folder);
        if published.is_err() && self.current() != Some(staging.snapshot) {
            let _ = self.lake.drop_snapshot(staging.snapshot);
        }
        published
    }

    fn drop_older(&self, scope: Scope) -> Result<(), Error> {
        if scope == Scope::Everything {
            for snapshot in integrity::drop_damaged(&self.lake)? {
                tracing::warn!(code = "damaged_snapshot", snapshot, "an older snapshot was damaged and is gone");
            }
        }
        let (state, expired) = self
            .store
            .readers()
            .read(|tx| Ok::<_, store::Error>((BuiltFrom::of(tx)?.state_id, Mark::Expiry.last(tx)?)))?;
        // Without retention no manifest of an older snapshot is worth reading.
        if expired > 0 {
            self.lake.drop_older(|built_from| built_from.state_id == state && built_from.change < expired)?;
        }
        self.lake.prune(self.settings.keep_snapshots, self.settings.keep_for, self.clock.now()).map(drop)
    }

    /// All snapshots before the current one, with their files.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn older(&self) -> Result<Vec<Forgotten>, Error> {
        self.lake.older()
    }

    /// Drops these of [`Publisher::older`], whatever their age. One that is gone already is none to drop. Blocks.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn forget(&self, snapshots: &[u32]) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.lake.forget(snapshots)
    }

    /// The snapshots that are there, which an erasure drops once there is a new one.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn snapshots(&self) -> Result<Vec<u32>, Error> {
        self.lake.all()
    }

    /// The number of the snapshot that readers see; `None` when there is none.
    pub fn current(&self) -> Option<u32> {
        self.lake.current_number()
    }

    /// The database that readers see, in its snapshot; `None` when nothing is published.
    pub fn database(&self) -> Option<PathBuf> {
        self.current().map(|snapshot| self.lake.folder(snapshot).join(database::FILE))
    }

    /// Whether the record store holds changes that no snapshot has. Blocks.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn is_behind(&self) -> Result<bool, Error> {
        let latest = self.store.readers().read(BuiltFrom::of)?;
        Ok(self.lake.current().is_none_or(|manifest| manifest.built_from != latest))
    }

    /// How many rows of features readers see for a date. Blocks.
    pub fn feature_rows(&self, as_of: NaiveDate) -> u64 {
        self.lake.current().map_or(0, |manifest| self.lake.features_at(&manifest, as_of).rows)
    }

    fn stage(
        &self,
        staging: &Staging,
        previous: Option<&Manifest>,
        scope: Scope,
    ) -> Result<Option<(Manifest, Sealed)>, Error> {
        let published_at = self.clock.now();
        let staged = self.store.readers().read(|tx| {
            let built_from = BuiltFrom::of(tx)?;
            let removed = Mark::Removal.last(tx)?;
            let alike = previous.filter(|previous| {
                scope == Scope::Changed && self.is_alike(previous, &built_from) && previous.built_from.change >= removed
            });
            if alike.is_some_and(|previous| previous.built_from == built_from && self.has_what_is_wanted(previous)) {
                return Ok(None);
            }
            let fitting = alike.filter(|previous| self.has_parquet(previous));
            let links: Option<i64> = tx.one("SELECT count(*) FROM links", args![], |row| row.int(0))?;
            let links = links.and_then(|links| u64::try_from(links).ok()).unwrap_or_default();
            let split = Split::of(links, self.settings.link_buckets);
            // Too many parts do little harm, so a lake that shrinks keeps them until all of it is written anew.
            let usable = fitting.filter(|previous| previous.link_parts >= split.parts / 2);
            let earlier = usable.map(|previous| (previous, self.lake.folder(previous.snapshot)));
            let mut stager = tables::Stager {
                tx,
                schema: self.schema,
                staging,
                previous: earlier.clone(),
                linker: earlier.as_ref().map(|(_, folder)| Linker::start(folder, staging)).transpose()?,
                split: usable.map_or(split, |previous| Split { parts: previous.link_parts, ..split }),
                links,
                pepper: self.pepper.clone(),
                confirm_after: self.confirm_after,
                publishes_pii: self.publishes_pii,
            };
            let changed = stager.changed_links()?;
            let partitions = partitions::Partitions::read(tx, earlier.as_ref())?;
            let delta = partitions.recomputed(earlier.as_ref()).map(|links| Delta::of(links, staging));
            let expired = Mark::Expiry.last(tx)?;
            let is_base = usable.is_some_and(|previous| previous.built_from.change >= expired);
            let leaves_most = is_base && stager.leaves_most(&changed);
            let mut handover = Handover::begin(&self.settings, staging, earlier, leaves_most)?;
            let (tables, delta) = stager.stage(&changed, delta, &mut handover)?;
            Ok::<_, Error>(Some((built_from, handover, tables, delta, partitions, stager.split.parts)))
        })?;
        let Some((built_from, mut handover, mut tables, delta, partitions, link_parts)) = staged else {
            return Ok(None);
        };
        let reference = &self.settings.reference;
        let earlier = previous.map(|previous| (previous, self.lake.folder(previous.snapshot)));
        let features = partitions.stage(staging, &tables, delta.as_ref(), earlier, reference)?;
        delta.map_or(Ok(()), delta::Files::remove)?;
        handover.take(&features, None);
        tables.push(features);
        let staged = Staged {
            schema: self.schema,
            snapshot: staging.snapshot,
            published_at,
            state_change: built_from.change,
            reference,
            errors: &partitions.errors,
        };
        // Finished files are synced while the sinks are still working.
        let (sealed, files) = std::thread::scope(|scope| {
            let sealing = scope.spawn(|| staging.seal(&tables));
            let files = handover.finish(staging, &staged);
            (sealing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), files)
        });
        let (sealed, files) = (sealed?, files?);
        if !self.wants(LakeForm::Parquet) {
            for table in &mut tables {
                let folder = staging.folder.join(&table.name);
                if table.files.is_empty() {
                    continue;
                }
                std::fs::remove_dir_all(&folder).map_err(|source| Error::at(&folder, source))?;
                table.files.clear();
            }
        }
        let manifest = Manifest {
            snapshot: staging.snapshot,
            schema_version: self.schema_version(),
            published_at: published_at.to_string(),
            vinculo_version: env!("CARGO_PKG_VERSION").to_owned(),
            built_from,
            link_buckets: self.settings.link_buckets,
            link_parts,
            reference: self.settings.reference.digest().to_owned(),
            settings: self.settings_digest(),
            tables,
            files,
        };
        Ok(Some((manifest, sealed)))
    }

    /// Whether rows of `previous` may stand in a snapshot that is made now.
    fn is_alike(&self, previous: &Manifest, built_from: &BuiltFrom) -> bool {
        previous.built_from.state_id == built_from.state_id
            && previous.built_from.change <= built_from.change
            && previous.link_buckets == self.settings.link_buckets
            && previous.vinculo_version == env!("CARGO_PKG_VERSION")
            && previous.has_pii() == self.publishes_pii
            && previous.reference == self.settings.reference.digest()
            && previous.settings == self.settings_digest()
            && self
                .published_tables()
                .all(|table| previous.table(&table.name).is_some_and(|entry| entry.schema_version == table.version))
    }

    /// Whether each table of `previous` has Parquet files that can be taken over.
    fn has_parquet(&self, previous: &Manifest) -> bool {
        let mut tables = self.published_tables();
        tables.all(|table| previous.table(&table.name).is_some_and(|entry| !entry.files.is_empty()))
    }

    /// Whether `previous` is in the forms that `lake.sinks` names, and in no other.
    fn has_what_is_wanted(&self, previous: &Manifest) -> bool {
        let is_in = |file: &str| previous.files.iter().any(|entry| entry.path == file);
        self.wants(LakeForm::Parquet) == self.has_parquet(previous)
            && sinks::ALL.iter().all(|sink| self.wants(sink.form()) == sink.files().iter().all(|file| is_in(file)))
    }

    fn wants(&self, form: LakeForm) -> bool {
        self.settings.sinks.contains(&form)
    }

    /// What `pii.pepper` and `belvo.confirm_after` make of a text, because another of either makes other rows, and
    /// `lake.duckdb_storage_version`, because another one makes another database. The pepper cannot be told from it.
    fn settings_digest(&self) -> String {
        let confirm_after = self.confirm_after.as_micros().to_string();
        let keyed = self.pepper.as_ref().map(|pepper| pepper.key_of(&[b"settings of a snapshot"])).unwrap_or_default();
        let storage_version = &self.settings.duckdb_storage_version;
        hex(&Sha256::digest(format!("{keyed}\n{confirm_after}\n{storage_version}"))[..16])
    }

    fn published_tables(&self) -> impl Iterator<Item = &'static Table> {
        let unmasked = if self.publishes_pii { schema::pii().tables.as_slice() } else { &[] };
        self.schema.tables.iter().chain(unmasked)
    }

    fn schema_version(&self) -> u32 {
        self.schema.tables.iter().map(|table| table.version).max().unwrap_or_default()
    }
}

/// Where readers find the features of a date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeaturesAt {
    /// The file, relative to its snapshot.
    pub path: String,
    /// Rows of the date in it.
    pub rows: u64,
}

impl Lake {
    /// Where readers find the features of a date in the snapshot of `manifest`: in the Parquet file of the date, or in the
    /// database when no Parquet is published. Blocks.
    pub fn features_at(&self, manifest: &Manifest, as_of: NaiveDate) -> FeaturesAt {
        if let Some(file) = partitions::file(manifest, as_of) {
            return FeaturesAt { path: file.path.clone(), rows: file.rows.unwrap_or_default() };
        }
        let file = self.folder(manifest.snapshot).join(database::FILE);
        let rows = explain::count(&file, as_of).unwrap_or_else(|error| {
            tracing::warn!(code = "lake_not_readable", "the features that are published cannot be counted: {error}");
            0
        });
        FeaturesAt { path: database::FILE.to_owned(), rows }
    }
}

impl BuiltFrom {
    /// What the state is, and how far it has come.
    ///
    /// # Errors
    /// [`store::Error::Database`], or [`store::Error::Unreadable`].
    pub fn of(tx: &Tx<'_>) -> Result<Self, store::Error> {
        let change = tx
            .meta("changes")?
            .map_or(Ok(0), |text| text.parse())
            .map_err(|_| store::Error::Unreadable("a counter"))?;
        Ok(Self { state_id: tx.meta("state_id")?.unwrap_or_default(), change })
    }
}

/// When to publish.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// This long after the last change,
    pub quiet: Duration,
    /// and at the latest this long after the first.
    pub max_wait: Duration,
}

/// Publishes when the record store has settled, until `shutdown`. `changed` tells of changes, and `published` of the change
/// that the latest snapshot has. `problems` hears of what stands in the way.
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
                problems.clear(PROBLEM);
                retry.reset();
                // Told also when there was nothing new: readers then have all there is.
                published
                    .send_modify(|change| *change = manifest.map_or(*change, |manifest| manifest.built_from.change));
                Duration::MAX
            }
            Err(error) => {
                problems.raise(PROBLEM);
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
                let _ = shutdown.run_until_cancelled(settle(&mut changed, pace)).await;
            }
            () = shutdown.cancelled() => return,
        }
        if shutdown.is_cancelled() {
            return;
        }
    }
}

/// Publishes away from the async threads.
///
/// # Errors
/// [`Error`].
pub async fn publish_in_background(publisher: &Arc<Publisher>, scope: Scope) -> Result<Option<Manifest>, Error> {
    let started = std::time::Instant::now();
    let publisher = Arc::clone(publisher);
    // Who ordered it may be told from the spans around.
    let span = tracing::Span::current();
    let published = in_background(move || span.in_scope(|| publisher.publish(scope))).await?;
    if let Some(manifest) = &published {
        metrics::histogram!("vinculo_publish_seconds").record(started.elapsed());
        metrics::gauge!("vinculo_snapshot").set(manifest.snapshot);
        if let Some(at) = Timestamp::parse(&manifest.published_at) {
            metrics::gauge!("vinculo_published_timestamp_seconds").set(at.as_micros() as f64 / 1e6);
        }
        for table in &manifest.tables {
            metrics::gauge!("vinculo_table_rows", "table" => table.name.clone()).set(table.rows as f64);
        }
        tracing::info!(
            snapshot = manifest.snapshot,
            millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "published"
        );
    }
    Ok(published)
}

/// Waits until nothing changed for a while, or changes have gone on for long enough.
async fn settle(changed: &mut watch::Receiver<()>, pace: Pace) {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::clock::Hand;
    use crate::config::LakeForm::{Duckdb, Parquet};
    use crate::features::runs;
    use crate::flatten::Comparison;
    use crate::link_id::LinkId;
    use crate::queue::{self, Trigger};
    use crate::records::{self, Drift, Listing, Record};
    use crate::resources::employments;
    use crate::sinks::parquet::read_texts;

    /// A state without links, and the lake of it.
    struct Place {
        folder: tempfile::TempDir,
        store: Store,
        hand: Hand,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            Self { folder, store, hand: Hand::at(Timestamp::from_micros(1_000_000_000)) }
        }

        fn lake(&self) -> PathBuf {
            self.folder.path().join("lake")
        }

        fn publisher(&self, sinks: &[LakeForm]) -> Publisher {
            self.publisher_of(&self.store, sinks)
        }

        fn publisher_of(&self, store: &Store, sinks: &[LakeForm]) -> Publisher {
            let settings = config::Lake::small(self.lake(), sinks);
            let clock = self.hand.clock();
            Publisher::open(store.clone(), settings, Duration::from_hours(1), None, clock).unwrap()
        }
    }

    /// Asks for features of a date that is over, corrections included.
    async fn ask_for_features(place: &Place, as_of: &str) {
        let now = place.hand.clock().now();
        let wanted = runs::Wanted { as_of: as_of.parse().unwrap(), mode: runs::Mode::Retro, lag_months: 0 };
        place.store.attempt(move |tx| runs::record(tx, wanted, now)).await.unwrap();
    }

    async fn add_link(store: &Store, number: u32) {
        let link = format!("{number:08}-0000-4000-8000-000000000000");
        let insert = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, 0, $2)";
        store.write(move |tx| tx.execute(insert, args![&link, tx.change()?])).await.unwrap();
    }

    /// Publishes from a thread that may block, as it is in the daemon.
    fn publish(publisher: &Publisher, scope: Scope) -> Result<Option<Manifest>, Error> {
        std::thread::scope(|threads| threads.spawn(|| publisher.publish(scope)).join().unwrap())
    }

    fn code(published: Result<Option<Manifest>, Error>) -> &'static str {
        published.err().map_or("none", |error| error.code())
    }

    #[tokio::test]
    async fn another_state_replaces_no_row_of_a_lake_unless_it_is_told_to() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        add_link(&place.store, 1).await;
        let other = Store::open(&place.folder.path().join("other.db")).unwrap();
        let another = place.publisher_of(&other, &[Parquet]);
        publish(&another, Scope::Changed).unwrap().expect("no row was there to be lost");
        publish(&publisher, Scope::Changed).unwrap().expect("nor is one now");
        assert_eq!(code(publish(&another, Scope::Changed)), "foreign_lake");
        assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 1);
        publish(&another, Scope::Everything).unwrap().unwrap();
        assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 0);
    }

    /// Lists a job of `number`'s link, as Belvo gave it in `minutes`.
    async fn list_job(store: &Store, number: u32, minutes: i64, end: &'static str) {
        let link = format!("{number:08}-0000-4000-8000-000000000000");
        let job = format!(
            r#"{{"id":"{number:08}-0000-4000-8000-00000000000a","link":"{link}","created_at":"2026-01-01T00:00:00.000Z",
            "collected_at":"2026-01-01T00:{minutes:02}:00.000Z","start_date":"2020-01-01","end_date":{end},
            "employer_data":{{"name":"EMPRESA","code":"99000042","economic_activity":null}},"occupations":[],"salaries":[]}}"#
        );
        let list = move |tx: &Tx<'_>| {
            let (link, resource): (LinkId, _) = (link.parse().unwrap(), &employments::RESOURCE);
            let at = Timestamp::from_micros(minutes * 60_000_000);
            queue::mark(tx, &link, resource, Trigger::Webhook, at)?;
            let records = vec![Record::read(resource, &link, &job).unwrap()];
            let listing = Listing { started_at: at, fetched_at: at, records, drift: Drift::default() };
            let mut comparison = Comparison::of(resource);
            let compare = &mut |old: &str, new: &str| comparison.loss(old, new);
            let kept = records::keep(tx, &link, resource, &listing, None, Duration::from_hours(1), compare)?;
            let news = "UPDATE refreshes SET content_seq = $2, sighted_seq = $2, touched_seq = $2 WHERE link_id = $1";
            tx.execute(news, args![&link, kept.change])
        };
        store.write(list).await.unwrap();
    }

    /// What stands in the text columns `names` of a table.
    fn texts(publisher: &Publisher, table: &str, names: [&str; 2]) -> Vec<[Option<String>; 2]> {
        let mut rows = Vec::new();
        let (manifest, lake) = (publisher.lake.current().unwrap(), publisher.lake.path().join("current"));
        for file in &manifest.table(table).unwrap().files {
            let keep = |row: [Option<&str>; 2]| rows.push(row.map(|text| text.map(str::to_owned)));
            read_texts(&lake.join(&file.path), names, keep).unwrap();
        }
        rows.sort_unstable();
        rows
    }

    #[tokio::test]
    async fn a_damaged_body_is_a_rejected_record_and_everything_else_is_published() {
        let place = Place::new();
        for number in 1..=3 {
            add_link(&place.store, number).await;
            list_job(&place.store, number, 1, "null").await;
        }
        list_job(&place.store, 1, 5, "\"2026-01-01\"").await;
        // The only version of the second, and the latest of the first.
        let damage = "UPDATE record_versions SET body = substr(body, 1, length(body) - 6) \
            WHERE (substr(link_id, 8, 1), version) IN (('1', 2), ('2', 1))";
        assert_eq!(place.store.write(move |tx| tx.execute(damage, args![])).await.unwrap(), 2);
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Everything).unwrap().unwrap();
        let listed = texts(&publisher, "employments", ["link_id", "employer_code"]);
        let of = |number: u32| Some(format!("{number:08}-0000-4000-8000-000000000000"));
        assert_eq!(
            listed.iter().map(|[link, _]| link.clone()).collect::<Vec<_>>(),
            [of(1), of(3)],
            "the last good version stays"
        );
        assert_eq!(publisher.lake.current().unwrap().table("links").unwrap().rows, 3);
        let rejected = texts(&publisher, "rejected_records", ["link_id", "reason"]);
        let told = |number| [of(number), Some("is damaged in the state".to_owned())];
        assert_eq!(rejected, [told(1), told(2)]);
        // The next list that is new mends what readers see.
        list_job(&place.store, 2, 9, "\"2026-02-02\"").await;
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(texts(&publisher, "employments", ["link_id", "employer_code"]).len(), 3);
        assert_eq!(
            texts(&publisher, "rejected_records", ["link_id", "reason"]).len(),
            2,
            "its history lacks a version"
        );
    }

    #[tokio::test]
    async fn a_lake_that_somebody_removed_has_no_snapshot() {
        let place = Place::new();
        add_link(&place.store, 1).await;
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(publisher.snapshots().unwrap(), [1]);
        fs::remove_dir_all(place.lake()).unwrap();
        assert_eq!(publisher.snapshots().unwrap(), [0; 0]);
    }

    #[tokio::test]
    async fn a_lake_that_lost_its_links_loses_nothing_else() {
        let place = Place::new();
        add_link(&place.store, 1).await;
        let publisher = place.publisher(&[Parquet]);
        for _ in 0..2 {
            publish(&publisher, Scope::Everything).unwrap().unwrap();
        }
        fs::remove_file(place.lake().join("current")).unwrap();

        let other = Store::open(&place.folder.path().join("other.db")).unwrap();
        let another = place.publisher_of(&other, &[Parquet]);
        assert_eq!(another.snapshots().unwrap(), [1, 2], "nobody can tell which of them nobody saw");
        assert_eq!(code(publish(&another, Scope::Changed)), "foreign_lake");
        let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap();
        assert_eq!(manifest.map(|manifest| manifest.snapshot), Some(3), "there is a current one again");
        assert_eq!(publisher.current(), Some(3));
    }

    #[tokio::test]
    async fn a_lake_whose_link_names_an_older_snapshot_goes_on_from_there_and_keeps_the_newer_ones() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet]);
        for number in 1..=3 {
            add_link(&place.store, number).await;
            publish(&publisher, Scope::Changed).unwrap().unwrap();
        }
        let link = place.lake().join("current");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("snapshots/000001", &link).unwrap();
        let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
        assert_eq!((manifest.snapshot, manifest.table("links").unwrap().rows), (4, 3));
        assert_eq!(publisher.snapshots().unwrap(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_made_anew_without_anybody_asking() {
        for sinks in [&[Parquet][..], &[Parquet, Duckdb]] {
            let place = Place::new();
            let publisher = place.publisher(sinks);
            add_link(&place.store, 1).await;
            let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
            let folder = publisher.lake.folder(manifest.snapshot).join("salaries");
            fs::remove_dir_all(&folder).unwrap();
            add_link(&place.store, 2).await;
            let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
            assert_eq!(manifest.table("links").unwrap().rows, 2);
            assert_eq!(publisher.snapshots().unwrap(), [manifest.snapshot], "the damaged one is gone");
            assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
        }
    }

    #[tokio::test]
    async fn nothing_staged_is_removed_from_a_lake_that_another_state_publishes() {
        let place = Place::new();
        add_link(&place.store, 1).await;
        publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
        let staged = place.lake().join(".staging/000002");
        fs::create_dir(&staged).unwrap();
        let other = Place { store: Store::open(&place.folder.path().join("other.db")).unwrap(), ..place };
        assert_eq!(code(publish(&other.publisher(&[Parquet]), Scope::Changed)), "foreign_lake");
        assert!(staged.exists());
    }

    #[tokio::test]
    async fn a_state_that_is_older_than_the_lake_stays_so_however_far_it_counts() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet]);
        let meta =
            |tx: &Tx<'_>| tx.all("SELECT name, value FROM meta", args![], |row| Ok((row.text(0)?, row.text(1)?)));
        let older = place.store.read(meta).await.unwrap();
        for number in 1..=3 {
            add_link(&place.store, number).await;
        }
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        let put_back = move |tx: &Tx<'_>| {
            tx.execute("DELETE FROM meta", args![])?;
            older.iter().try_for_each(|(name, value)| {
                tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args![name, value]).map(drop)
            })
        };
        place.store.write(put_back).await.unwrap();
        assert_eq!(code(publish(&publisher, Scope::Changed)), "state_older_than_lake");
        for number in 4..=9 {
            add_link(&place.store, number).await;
        }
        // Also after a restart.
        let publisher = place.publisher(&[Parquet]);
        assert_eq!(code(publish(&publisher, Scope::Changed)), "state_older_than_lake");
        publish(&publisher, Scope::Everything).unwrap().unwrap();
        add_link(&place.store, 10).await;
        assert_eq!(code(publish(&publisher, Scope::Changed)), "none");
    }

    #[tokio::test]
    async fn nothing_is_written_into_the_place_of_a_volume_that_is_not_mounted() {
        let place = Place::new();
        add_link(&place.store, 1).await;
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(place.lake().metadata().unwrap().mode() & 0o777, 0o750, "it is no business of strangers");
        let (lake, volume) = (place.lake(), place.folder.path().join("volume"));
        fs::rename(&lake, &volume).unwrap();
        fs::create_dir(&lake).unwrap();
        add_link(&place.store, 2).await;
        let restarted = place.publisher(&[Parquet]);
        for publisher in [&publisher, &restarted] {
            assert_eq!(code(publish(publisher, Scope::Changed)), MISSING);
            assert!(publisher.is_missing());
        }
        assert_eq!(fs::read_dir(&lake).unwrap().count(), 0);

        fs::remove_dir(&lake).unwrap();
        fs::rename(&volume, &lake).unwrap();
        let manifest = publish(&restarted, Scope::Changed).unwrap().unwrap();
        assert_eq!((manifest.snapshot, manifest.table("links").unwrap().rows), (2, 2), "it is mounted again");
        assert!(!restarted.is_missing());

        fs::remove_dir_all(&lake).unwrap();
        let device = "UPDATE meta SET value = replace(value, ' ' || $1 || ' ', ' 7 ') WHERE name = 'last_snapshot'";
        let here = Lake::look(&lake).device().unwrap().to_string();
        place.store.write(move |tx| tx.execute(device, args![&here])).await.unwrap();
        let publisher = place.publisher(&[Parquet]);
        assert_eq!(code(publish(&publisher, Scope::Changed)), MISSING, "what it is in was on another device");
        assert!(publisher.is_missing() && !lake.exists());
        publish(&publisher, Scope::Everything).unwrap().expect("it was ordered");

        fs::remove_dir_all(&lake).unwrap();
        let manifest = publish(&place.publisher(&[Parquet]), Scope::Changed).unwrap().unwrap();
        assert_eq!(manifest.snapshot, 1, "somebody removed it on purpose");
        fs::remove_dir_all(&lake).unwrap();
        fs::create_dir(&lake).unwrap();
        publish(&place.publisher(&[Parquet]), Scope::Everything).unwrap().expect("it was ordered");
        assert_eq!(code(publish(&place.publisher(&[Parquet]), Scope::Changed)), "none");
    }

    #[tokio::test]
    async fn a_snapshot_that_nobody_will_see_is_not_left() {
        let place = Place::new();
        add_link(&place.store, 1).await;
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        // As a copy leaves it that follows links.
        let current = place.lake().join("current");
        fs::remove_file(&current).unwrap();
        fs::create_dir(&current).unwrap();
        for _ in 0..3 {
            assert_eq!(code(publish(&publisher, Scope::Changed)), "lake_not_writable");
        }
        assert_eq!(publisher.snapshots().unwrap(), [1]);
        fs::remove_dir(&current).unwrap();
        assert_eq!(publish(&publisher, Scope::Changed).unwrap().unwrap().snapshot, 2);
    }

    #[tokio::test]
    async fn an_older_copy_of_the_lake_brings_nobody_back() {
        let place = Place::new();
        for number in 1..=200 {
            add_link(&place.store, number).await;
        }
        let publisher = place.publisher(&[Parquet]);
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        let remove = |tx: &Tx<'_>| {
            tx.execute("DELETE FROM links WHERE link_id IN (SELECT link_id FROM links LIMIT 1)", args![])?;
            Mark::Removal.note(tx)
        };
        place.store.write(remove).await.unwrap();
        // The lake stands as it was before, and another link changes.
        add_link(&place.store, 201).await;
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        let links = manifest.table("links").unwrap();
        assert_eq!(links.rows, 200);
        assert!(
            links.files.iter().all(|file| {
                place.lake().join("snapshots/000002").join(&file.path).metadata().unwrap().nlink() == 1
            })
        );
    }

    #[tokio::test]
    async fn what_has_expired_is_in_no_file_and_no_snapshot_once_it_is_published() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet, Duckdb]);
        for number in 1..=8 {
            add_link(&place.store, number).await;
            publish(&publisher, Scope::Changed).unwrap().unwrap();
        }
        let (gone, count) = ("00000003-0000-4000-8000-000000000000", publisher.snapshots().unwrap().len());
        assert_eq!(count, 8, "none is old enough to go by itself");
        let expire = move |tx: &Tx<'_>| {
            tx.execute("DELETE FROM links WHERE link_id = $1", args![gone])?;
            Mark::Expiry.note(tx)
        };
        place.store.write(expire).await.unwrap();
        add_link(&place.store, 9).await;
        let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(publisher.snapshots().unwrap(), [manifest.snapshot]);
        let folder = publisher.lake.folder(manifest.snapshot);
        for file in manifest.files.iter().chain(&manifest.table("links").unwrap().files) {
            let bytes = fs::read(folder.join(&file.path)).unwrap();
            assert!(memchr::memmem::find(&bytes, gone.as_bytes()).is_none(), "{}", file.path);
        }
        // What is published from then on is taken over again, and stays.
        add_link(&place.store, 10).await;
        publish(&publisher, Scope::Changed).unwrap().unwrap();
        assert_eq!(publisher.snapshots().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_publish_that_fails_after_a_good_one_is_tried_again_in_two_seconds() {
        let place = Place::new();
        let publisher = Arc::new(place.publisher(&[Parquet]));
        let (changed, published, problems) = (watch::Sender::new(()), watch::Sender::new(0), Problems::default());
        let (mut seen, shutdown) = (published.subscribe(), CancellationToken::new());
        let pace = Pace { quiet: Duration::ZERO, max_wait: Duration::ZERO };
        tokio::spawn(run(publisher, pace, changed.subscribe(), published, problems.clone(), shutdown.clone()));
        seen.changed().await.unwrap();

        let staging = place.lake().join(".staging");
        fs::remove_dir(&staging).unwrap();
        fs::write(&staging, "no folder").unwrap();
        changed.send_replace(());
        while problems.standing().is_empty() {
            tokio::task::yield_now().await;
        }
        let failed = std::time::Instant::now();
        fs::remove_file(&staging).unwrap();
        fs::create_dir(&staging).unwrap();
        seen.changed().await.unwrap();
        assert!(failed.elapsed() < LAST_RETRY / 2, "{:?}", failed.elapsed());
        assert!(problems.standing().is_empty());
        shutdown.cancel();
    }

    #[tokio::test]
    async fn whoever_waits_for_a_publish_hears_that_it_failed() {
        let place = Place::new();
        let publisher = Arc::new(place.publisher(&[Parquet]));
        let staging = place.lake().join(".staging");
        fs::remove_dir(&staging).unwrap();
        fs::write(&staging, "no folder").unwrap();
        add_link(&place.store, 1).await;
        let published = watch::Sender::new(0);
        let publish = || publish_in_background(&publisher, Scope::Changed);
        let (waited, failed) = tokio::join!(publisher.until_published(published.subscribe()), publish());
        let (waited, failed) = (waited.unwrap_err(), failed.unwrap_err());
        assert_eq!((waited.code, waited.code), ("lake_not_writable", failed.code()));
        assert!(waited.to_string().contains("make room"), "{waited}");

        fs::remove_file(&staging).unwrap();
        fs::create_dir(&staging).unwrap();
        let manifest = publish().await.unwrap().unwrap();
        publisher.until_published(watch::Sender::new(manifest.built_from.change).subscribe()).await.unwrap();
    }

    #[test]
    fn an_erasure_leaves_no_older_snapshot_whatever_the_clock_said_when_it_was_published() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet]);
        for now in [3_000_000_000, 1_000_000_000, 2_000_000_000] {
            place.hand.set(Timestamp::from_micros(now));
            publish(&publisher, Scope::Everything).unwrap().unwrap();
        }
        assert_eq!(publisher.snapshots().unwrap(), [1, 2, 3]);
        let left = place.lake().join(".staging/000000.gone");
        fs::create_dir(&left).unwrap();
        let forgotten = publisher.older().unwrap();
        publisher.forget(&[1, 2]).unwrap();
        assert_eq!(forgotten.iter().map(|gone| gone.snapshot).collect::<Vec<_>>(), [1, 2]);
        assert!(forgotten.iter().all(|gone| !gone.files.is_empty()), "{forgotten:?}");
        assert_eq!(publisher.snapshots().unwrap(), [3]);
        assert_eq!(fs::read_dir(place.lake().join(".staging")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn features_stand_in_the_order_of_their_key_and_no_footer_tells_of_anybody() {
        let place = Place::new();
        let publisher = place.publisher(&[Parquet]);
        let now = place.hand.now();
        for number in [2, 1, 3] {
            add_link(&place.store, number).await;
            ask_for_features(&place, "1969-12-31").await;
            let (as_of, mode) = ("1969-12-31".parse().unwrap(), runs::Mode::Strict);
            let strict = runs::Wanted { as_of, mode, lag_months: 0 };
            place.store.attempt(move |tx| runs::record(tx, strict, now)).await.unwrap();
            let manifest = publish(&publisher, Scope::Changed).unwrap().unwrap();
            let folder = publisher.lake.folder(manifest.snapshot);
            let file = folder.join(publisher.lake.features_at(&manifest, as_of).path);
            assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
            let texts = |sql: &str| {
                let connection = duckdb::Connection::open_in_memory().unwrap();
                let mut found = connection.prepare(&sql.replace("FILE", &format!("'{}'", file.display()))).unwrap();
                found.query_map([], |row| row.get(0)).unwrap().collect::<duckdb::Result<Vec<String>>>().unwrap()
            };
            let rows = texts(
                "SELECT link_id || pit_mode FROM read_parquet(FILE, file_row_number = true) ORDER BY file_row_number",
            );
            assert!(rows.is_sorted() && rows.iter().any(|row| row.ends_with("strict")), "{rows:?}");
            assert!(rows.iter().any(|row| row.ends_with("retro")), "{rows:?}");
            let told = texts(
                "SELECT DISTINCT path_in_schema FROM parquet_metadata(FILE) \
                 WHERE coalesce(stats_min, stats_max, stats_min_value, stats_max_value) IS NOT NULL",
            );
            assert_eq!(told, ["link_id"]);
        }
    }

    #[tokio::test]
    async fn a_folder_around_the_lake_may_be_called_as_a_key_of_its_rows() {
        let place = Place::new();
        for (number, folder) in [(1, "env=prod"), (4, "link_id=7"), (7, "as_of_date=2020-01-01")] {
            let settings = config::Lake::small(place.folder.path().join(folder), &[Parquet, Duckdb]);
            let (store, clock) = (place.store.clone(), place.hand.clock());
            let publisher = Publisher::open(store, settings, Duration::from_hours(1), None, clock).unwrap();
            for number in number..number + 3 {
                add_link(&place.store, number).await;
                ask_for_features(&place, "1969-12-31").await;
                ask_for_features(&place, "1969-12-30").await;
                publish(&publisher, Scope::Changed).unwrap().expect(folder);
            }
            let count = "SELECT sum(of_date), min(of_date), count(*) FROM (SELECT as_of_date, count(*) AS of_date \
                 FROM credit_features WHERE as_of_date IN (DATE '1969-12-31', DATE '1969-12-30') GROUP BY 1)";
            let counted =
                duckdb::Connection::open(publisher.database().unwrap()).unwrap().query_row(count, [], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
                });
            let links = i64::from(number) + 2;
            assert_eq!(counted.unwrap(), (2 * links, links, 2), "{folder}");
        }
    }

    #[test]
    fn what_the_lake_is_to_be_made_of_is_seen_to_although_nothing_else_changed() {
        let place = Place::new();
        let forms = |manifest: &Manifest| {
            let links = manifest.table("links").unwrap();
            (!links.files.is_empty(), manifest.files.iter().any(|file| file.path == database::FILE))
        };
        let publish_with = |sinks: &[LakeForm], version: &str| {
            let settings =
                config::Lake { duckdb_storage_version: version.to_owned(), ..config::Lake::small(place.lake(), sinks) };
            let (store, clock) = (place.store.clone(), place.hand.clock());
            publish(&Publisher::open(store, settings, Duration::from_hours(1), None, clock).unwrap(), Scope::Changed)
                .unwrap()
        };
        for (sinks, version, expected) in [
            (&[Parquet][..], "v1.0.0", (true, false)),
            (&[Parquet, Duckdb], "v1.0.0", (true, true)),
            (&[Duckdb], "v1.0.0", (false, true)),
            (&[Duckdb], "v1.2.0", (false, true)),
            (&[Parquet, Duckdb], "v1.2.0", (true, true)),
            (&[Parquet, Duckdb], "v1.0.0", (true, true)),
            (&[Parquet], "v1.0.0", (true, false)),
        ] {
            let published = publish_with(sinks, version).map(|manifest| forms(&manifest));
            assert_eq!(published, Some(expected), "{sinks:?} {version}");
            assert!(publish_with(sinks, version).is_none(), "{sinks:?} {version}");
            assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
        }
    }

    #[test]
    fn a_lake_without_a_database_has_no_link_to_one() {
        let place = Place::new();
        let link = place.lake().join(database::FILE);
        for (sinks, has_database) in
            [(&[Parquet][..], false), (&[Parquet, Duckdb], true), (&[Duckdb], true), (&[Parquet], false)]
        {
            publish(&place.publisher(sinks), Scope::Everything).unwrap().unwrap();
            assert_eq!((link.is_symlink(), link.exists()), (has_database, has_database), "{sinks:?}");
            assert!(integrity::check(&place.lake()).unwrap().damage.is_empty(), "{sinks:?}");
        }
    }
}
