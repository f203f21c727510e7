//! Staged → visible: the only door to readers.
//!
//! *Takes* one consistent view of the record store. *Gives* a new snapshot of every table, or nothing when nothing
//! changed. *Promises* that the lake is a function of the record store and the schemas: publishing into an empty folder
//! gives the same rows; that files whose rows cannot have changed are taken over and not written again; and that
//! readers see the whole of one snapshot.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use tokio::sync::watch;
use tracing::field::Empty;

use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::database;
use crate::features::published;
use crate::lane::in_background;
use crate::schema::{self, Schema};
use crate::sensitive::Pepper;
use crate::store::{self, Store};

mod cells;
mod delta;
mod error;
mod handover;
pub mod integrity;
mod output;
mod own_lake;
mod pace;
mod partitions;
mod pii;
mod snapshots;
mod stage;
mod tables;

pub use error::{Error, Unpublished};
pub use own_lake::{Departure, OwnLake};
pub use pace::{PUBLISH_FAILED, Pace, run};
pub use snapshots::{BuiltFrom, FileEntry, Forgotten, Lake, Manifest, TableEntry, checksum};

/// Code of the problem that the lake's folder is empty although this state published into it, as when its volume is not
/// mounted.
pub const LAKE_MISSING: &str = "lake_missing";

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
    /// A publisher of the state `store`, where two lists `confirm_after` apart agree that a row is gone. It removes
    /// what a crash left in the staging folder. Where the lake's volume is not mounted, it makes no folder.
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
        let own = store.readers().read(|tx| OwnLake::of(tx, &lake))?;
        if own.is_in(&lake).is_ok() {
            Lake::open(&settings.path)?;
            // In another state's lake somebody may be at work.
            if lake.last().is_none_or(|last| last.built_from.state_id == own.built_from.state_id) {
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

    /// Waits until every change made so far is published, or a publish fails; it does not wait for changes that come
    /// later. `published` carries the number of the last change that the latest snapshot contains, as [`run`] sends it.
    ///
    /// # Errors
    /// [`Unpublished`]. Publishing is tried again, but nobody knows how often it will fail.
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
            self.own_lake()?.may_replace(&self.lake, previous.as_ref().or(newest.as_ref()))?;
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
        // Also where nothing was published: what stood in a full disk's way may go by now, and what an earlier publish
        // left behind has to. Readers see the newest one already, whatever becomes of those before it.
        let may_be_damaged = scope == Scope::Everything && published.as_ref().is_ok_and(Option::is_some);
        let dropped = if may_be_damaged { self.drop_damaged() } else { Ok(()) };
        if let Err(error) = dropped.and_then(|()| self.drop_expired_and_old()) {
            tracing::warn!(code = error.code(), "an older snapshot could not be dropped: {error}");
        }
        published
    }

    /// Whether this state may replace what is in the lake: it published that itself, or nothing is lost. Blocks.
    ///
    /// # Errors
    /// [`Error::OtherState`], [`Error::OlderState`], [`Error::Bare`]; [`Error::Store`] when it cannot be known.
    pub fn may_replace(&self) -> Result<(), Error> {
        self.own_lake()?.may_replace(&self.lake, self.lake.last().as_ref())
    }

    fn own_lake(&self) -> Result<OwnLake, store::Error> {
        self.store.readers().read(|tx| OwnLake::of(tx, &self.lake))
    }

    /// Whether the lake that this state published into is missing. Blocks.
    pub fn is_missing(&self) -> bool {
        self.lake.is_bare() && self.own_lake().is_ok_and(|own| own.is_in(&self.lake).is_err())
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
            // Noted before readers see it: a state that does not know the snapshot of its lake is taken for an older
            // state.
            let (lake, snapshot) = (self.lake.clone(), staging.snapshot);
            self.store.write_blocking(move |tx| OwnLake::note(tx, &lake, snapshot))?;
            self.lake.reveal(&staging, &sealed, &manifest)?;
            Ok(Some(manifest))
        });
        // After its rename the staged folder is gone. If `current` could not be moved to the renamed snapshot, that
        // goes too: each failed try would leave one behind.
        let _ = std::fs::remove_dir_all(&staging.folder);
        if published.is_err() && self.current() != Some(staging.snapshot) {
            let _ = self.lake.drop_snapshot(staging.snapshot);
        }
        published
    }

    /// Drops the older snapshots that are damaged.
    fn drop_damaged(&self) -> Result<(), Error> {
        for snapshot in integrity::drop_damaged(&self.lake)? {
            tracing::warn!(code = "damaged_snapshot", snapshot, "an older snapshot was damaged and is gone");
        }
        Ok(())
    }

    /// Drops the snapshots of what has expired, and those that are too old.
    fn drop_expired_and_old(&self) -> Result<(), Error> {
        let (state, expired) = self
            .store
            .readers()
            .read(|tx| Ok::<_, store::Error>((BuiltFrom::of(tx)?.state_id, Departure::Expiry.last(tx)?)))?;
        // Without retention no manifest of an older snapshot is worth reading.
        if expired > 0 {
            self.lake
                .drop_those_of_expired(|built_from| built_from.state_id == state && built_from.change < expired)?;
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
    /// Where readers find the features of a date in the snapshot of `manifest`: in the Parquet file of the date, or in
    /// the database when no Parquet is published. Blocks.
    pub fn features_at(&self, manifest: &Manifest, as_of: NaiveDate) -> FeaturesAt {
        if let Some(file) = partitions::file(manifest, as_of) {
            return FeaturesAt { path: file.path.clone(), rows: file.rows.unwrap_or_default() };
        }
        let file = self.folder(manifest.snapshot).join(database::FILE);
        let rows = published::count(&file, as_of).unwrap_or_else(|error| {
            tracing::warn!(code = "lake_not_readable", "the features that are published cannot be counted: {error}");
            0
        });
        FeaturesAt { path: database::FILE.to_owned(), rows }
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

#[cfg(test)]
mod tests;
