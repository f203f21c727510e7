//! Staged tables → the sinks, each as soon as its Parquet files are written.
//!
//! *Takes* the tables of one snapshot. *Gives* the files that hold all of them, with their checksums. *Promises* that
//! no sink is still writing after [`Handover::finish`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::snapshots::{FileEntry, Manifest, Staging, TableEntry};
use crate::config;
use crate::sinks::{self, Begun, FewChanged, Previous, Staged, StagedFile, StagedTable, Target};

/// The sinks of one snapshot at work.
pub(super) struct Handover<'s> {
    sinks: Vec<Box<dyn Begun>>,
    /// The last snapshot and its folder, when its files may be taken over.
    previous: Option<(&'s Manifest, PathBuf)>,
}

impl<'s> Handover<'s> {
    /// Lets the sinks that are wanted begin. Most of the `previous` snapshot stands in this one when `leaves_most`.
    pub(super) fn begin(
        settings: &config::Lake,
        staging: &Staging,
        previous: Option<(&'s Manifest, PathBuf)>,
        leaves_most: bool,
    ) -> Result<Self, Error> {
        let wanted = sinks::ALL.iter().filter(|sink| settings.sinks.contains(&sink.form()));
        let begun = wanted.map(|sink| {
            sink.begin(Target {
                folder: staging.folder.clone(),
                duckdb_storage_version: settings.duckdb_storage_version.clone(),
                previous: previous.as_ref().filter(|_| leaves_most).map(|(previous, folder)| Previous {
                    folder: folder.clone(),
                    sha256: previous.files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect(),
                }),
            })
        });
        Ok(Self { sinks: begun.collect::<Result<_, _>>()?, previous })
    }

    /// Hands a staged table over.
    pub(super) fn take(&mut self, table: &TableEntry, few_changed: Option<FewChanged>) {
        let previous =
            self.previous.as_ref().and_then(|(manifest, folder)| Some((manifest.table(&table.name)?, folder)));
        let held: HashSet<&FileEntry> = table.files.iter().collect();
        let (before, gone) = match previous {
            Some((before, folder)) => {
                let gone = before.files.iter().filter(|file| !held.contains(file));
                (before.files.iter().collect(), gone.map(|file| folder.join(&file.path)).collect())
            }
            None => (HashSet::new(), Vec::new()),
        };
        let files = table.files.iter().map(|file| StagedFile {
            path: (&file.path).into(),
            rows: file.rows.unwrap_or_default(),
            is_new: !before.contains(file),
        });
        let staged = Arc::new(StagedTable { name: table.name.clone(), files: files.collect(), gone, few_changed });
        self.sinks.iter_mut().for_each(|sink| sink.take(Arc::clone(&staged)));
    }

    /// Lets the sinks finish, once every table was handed over.
    pub(super) fn finish(self, staging: &Staging, staged: &Staged<'_>) -> Result<Vec<FileEntry>, Error> {
        let mut files = Vec::new();
        for mut sink in self.sinks {
            let paths = sink.stage(staged)?;
            std::thread::scope(|scope| {
                // A database takes a while to go.
                scope.spawn(move || drop(sink));
                paths.iter().try_for_each(|path| {
                    files.push(staging.checked(path, None)?);
                    Ok::<_, Error>(())
                })
            })?;
        }
        Ok(files)
    }
}
