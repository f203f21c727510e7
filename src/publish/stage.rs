//! One snapshot, staged: its tables, the features that are computed from them, and the seal.
//!
//! *Takes* one consistent view of the record store, and the last snapshot. *Gives* a folder that nobody sees yet, with
//! its manifest, or nothing when nothing changed. *Promises* that files of the last snapshot are taken over only where
//! the same program would write the same rows now. *Not here*: when readers see it.

use sha2::{Digest, Sha256};

use super::cells::Split;
use super::delta::{self, Delta};
use super::handover::Handover;
use super::output::Linker;
use super::own_lake::Departure;
use super::partitions::Partitions;
use super::snapshots::{BuiltFrom, Manifest, Sealed, Staging, TableEntry};
use super::tables::Stager;
use super::{Error, Publisher, Scope};
use crate::clock::Timestamp;
use crate::config::LakeForm;
use crate::features::{TABLE, dictionary};
use crate::schema::{self, Table};
use crate::sensitive::hex;
use crate::sinks::{self, Staged};
use crate::store::args;

/// The tables of one view of the record store, which sinks are at work on, and what the steps after need of that view.
struct StagedTables<'s> {
    /// The state that was read.
    built_from: BuiltFrom,
    tables: Vec<TableEntry>,
    /// Files of each partition of a large table, at most.
    link_parts: u32,
    /// The features that are wanted.
    partitions: Partitions,
    /// The rows of the links whose features are computed anew, when these are few.
    delta: Option<delta::Files>,
    handover: Handover<'s>,
}

impl Publisher {
    /// Stages a snapshot; `None` when the `previous` one has all there is.
    pub(super) fn stage(
        &self,
        staging: &Staging,
        previous: Option<&Manifest>,
        scope: Scope,
    ) -> Result<Option<(Manifest, Sealed)>, Error> {
        let published_at = self.clock.now();
        let Some(mut staged) = self.stage_tables(staging, previous, scope)? else { return Ok(None) };
        self.stage_features(staging, previous, &mut staged)?;
        self.seal(staging, staged, published_at).map(Some)
    }

    /// Stages what comes from records, lists and links, out of one view of the state.
    fn stage_tables<'s>(
        &self,
        staging: &Staging,
        previous: Option<&'s Manifest>,
        scope: Scope,
    ) -> Result<Option<StagedTables<'s>>, Error> {
        self.store.readers().read(|tx| {
            let built_from = BuiltFrom::of(tx)?;
            let removed = Departure::Removal.last(tx)?;
            let alike = previous.filter(|previous| {
                scope == Scope::Changed && self.is_alike(previous, &built_from) && previous.built_from.change >= removed
            });
            if alike.is_some_and(|previous| previous.built_from == built_from && self.has_what_is_wanted(previous)) {
                return Ok(None);
            }
            let fitting = alike.filter(|previous| self.has_parquet(previous));
            let links = tx.count("SELECT count(*) FROM links", args![])?;
            let split = Split::of(links, self.settings.link_buckets);
            // Too many parts do little harm, so a lake that shrinks keeps them until all of it is written anew.
            let usable = fitting.filter(|previous| previous.link_parts >= split.parts / 2);
            let earlier = usable.map(|previous| (previous, self.lake.folder(previous.snapshot)));
            let mut stager = Stager {
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
            let partitions = Partitions::read(tx, earlier.as_ref())?;
            let delta = partitions.recomputed(earlier.as_ref()).map(|links| Delta::of(links, staging));
            let expired = Departure::Expiry.last(tx)?;
            let is_base = usable.is_some_and(|previous| previous.built_from.change >= expired);
            let leaves_most = is_base && stager.leaves_most(&changed);
            let mut handover = Handover::begin(&self.settings, staging, earlier, leaves_most)?;
            let (tables, delta) = stager.stage(&changed, delta, &mut handover)?;
            let link_parts = stager.split.parts;
            Ok::<_, Error>(Some(StagedTables { built_from, tables, link_parts, partitions, delta, handover }))
        })
    }

    /// Stages the features from the tables.
    fn stage_features(
        &self,
        staging: &Staging,
        previous: Option<&Manifest>,
        staged: &mut StagedTables<'_>,
    ) -> Result<(), Error> {
        let StagedTables { tables, partitions, delta, handover, .. } = staged;
        let reference = &self.settings.reference;
        let earlier = previous.map(|previous| (previous, self.lake.folder(previous.snapshot)));
        let features = partitions.stage(staging, tables, delta.as_ref(), earlier, reference)?;
        delta.take().map_or(Ok(()), delta::Files::remove)?;
        handover.take(&features, None);
        tables.push(features);
        Ok(())
    }

    /// Lets the sinks finish, and seals what is staged.
    fn seal(
        &self,
        staging: &Staging,
        staged: StagedTables<'_>,
        published_at: Timestamp,
    ) -> Result<(Manifest, Sealed), Error> {
        let StagedTables { built_from, mut tables, link_parts, partitions, handover, .. } = staged;
        let of_all = Staged {
            schema: self.schema,
            snapshot: staging.snapshot,
            published_at,
            state_change: built_from.change,
            reference: &self.settings.reference,
            errors: &partitions.errors,
        };
        // Finished files are synced while the sinks are still working.
        let (sealed, files) = std::thread::scope(|scope| {
            let sealing = scope.spawn(|| staging.seal(&tables));
            let files = handover.finish(staging, &of_all);
            (sealing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), files)
        });
        let (sealed, files) = (sealed?, files?);
        if !self.wants(LakeForm::Parquet) {
            // What stands under `pii/` is in no other form.
            for table in tables.iter_mut().filter(|table| !table.is_pii()) {
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
        Ok((manifest, sealed))
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
            && previous.table(TABLE).is_none_or(|entry| entry.schema_version == dictionary::version())
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
