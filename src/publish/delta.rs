//! The rows of the few links that something happened to, apart from all others: what their features are computed from
//! anew.
//!
//! Every file of a large lake holds a changed link or two among a hundred others, so that reading a table for a
//! hundredth of the links is reading all of it. These rows pass by anyway, on their way into the tables.
//!
//! *Takes* rows of history tables. *Gives* a file for each, in the staged folder, that is gone before readers see it.
//! *Promises* memory that does not grow with the rows. *Not here*: which links, and who reads them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use super::snapshots::Staging;
use crate::columns::Columns;
use crate::schema::Table;
use crate::sinks;
use crate::sinks::parquet::{Kit, TableWriter};

/// Its folder, in that of the snapshot.
const FOLDER: &str = "delta.tmp";

/// Rows of a table that wait in memory for the file.
const WAITING_ROWS: usize = 8_192;

/// The rows of these links so far.
pub(super) struct Delta {
    folder: PathBuf,
    links: BTreeSet<String>,
    /// By the name of the table.
    passing: HashMap<&'static str, Passing>,
}

/// The rows of one table.
struct Passing {
    table: &'static Table,
    waiting: Columns,
    writer: TableWriter,
}

/// The files of a [`Delta`], until [`Files::remove`].
pub(super) struct Files(PathBuf);

impl Delta {
    /// No rows yet, of no table.
    pub(super) fn of(links: BTreeSet<String>, staging: &Staging) -> Self {
        Self { folder: staging.folder.join(FOLDER), links, passing: HashMap::new() }
    }

    /// The links.
    pub(super) fn links(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(String::as_str)
    }

    /// Whether the link is one of them.
    pub(super) fn has(&self, link_id: &str) -> bool {
        self.links.contains(link_id)
    }

    /// Begins the file of `table`, so that there is one also when it has no rows.
    pub(super) fn begin(&mut self, table: &'static Table) -> Result<(), Error> {
        let writer = TableWriter::create(&path(&self.folder, &table.name), Kit::new(table)?)?;
        self.passing.insert(&table.name, Passing { table, waiting: Columns::of_table(table), writer });
        Ok(())
    }

    /// Whether the file of `table` was begun.
    pub(super) fn has_begun(&self, table: &Table) -> bool {
        self.passing.contains_key(table.name.as_str())
    }

    /// Takes the rows of `table` from `first` on, if its file was begun.
    pub(super) fn take(&mut self, table: &Table, rows: &Columns, first: usize) -> Result<(), Error> {
        let Some(passing) = self.passing.get_mut(table.name.as_str()) else { return Ok(()) };
        passing.waiting.push_rows_of(rows, first..rows.len(), &[]);
        if passing.waiting.len() >= WAITING_ROWS { passing.write() } else { Ok(()) }
    }

    /// Ends the files.
    pub(super) fn finish(self) -> Result<Files, Error> {
        for mut passing in self.passing.into_values() {
            passing.write()?;
            passing.writer.finish()?;
        }
        Ok(Files(self.folder))
    }
}

impl Passing {
    fn write(&mut self) -> Result<(), Error> {
        let batch = self.waiting.take(&self.table.batch).map_err(sinks::Error::from)?;
        Ok(self.writer.write(&batch)?)
    }
}

impl Files {
    /// The file of a table; `None` when it was not begun.
    pub(super) fn of(&self, table: &str) -> Option<PathBuf> {
        Some(path(&self.0, table)).filter(|path| path.exists())
    }

    /// Removes them, and says so when that fails: nothing of them may be seen by readers.
    pub(super) fn remove(self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::at(&self.0, source)),
            _ => Ok(()),
        }
    }
}

fn path(folder: &Path, table: &str) -> PathBuf {
    folder.join(table).with_added_extension("parquet")
}
