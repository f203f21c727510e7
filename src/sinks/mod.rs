//! Batches → staged tables, invisible until they are published: one file a sink, and one list.
//!
//! Parquet is written first and is what every other sink reads: it is the fastest way into DuckDB too. Adding a sink is
//! a module with a [`Sink`] and two lines: its `mod` and its entry in [`ALL`]; and its [`LakeForm`], by which it is
//! asked for.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::config::LakeForm;
use crate::reference::Reference;
use crate::schema::Schema;

pub mod duckdb;
pub mod parquet;

/// Every sink that turns staged Parquet into something else.
pub static ALL: [&'static dyn Sink; 1] = [&duckdb::Duckdb];

/// Turns the staged Parquet of a snapshot into another form, in the same staged folder.
pub trait Sink: Sync {
    /// The form that it gives.
    fn form(&self) -> LakeForm;

    /// The files that it writes, relative to the snapshot.
    fn files(&self) -> &'static [&'static str];

    /// Begins with what needs no Parquet, while that is written.
    ///
    /// # Errors
    /// [`Error`]; what is staged is then thrown away.
    fn begin(&self, target: Target) -> Result<Box<dyn Begun>, Error>;
}

/// A sink at work on one snapshot. Once it is dropped, it writes no more.
pub trait Begun: Send {
    /// Goes on with a table whose Parquet files are all written, while those of others are.
    fn take(&mut self, table: Arc<StagedTable>);

    /// Writes its files into the staged folder, and names them, relative to it. Every table was taken before.
    ///
    /// # Errors
    /// [`Error`]; what is staged is then thrown away.
    fn stage(&mut self, staged: &Staged<'_>) -> Result<Vec<PathBuf>, Error>;
}

/// What is known of a snapshot before its Parquet files are written.
pub struct Target {
    /// Its folder.
    pub folder: PathBuf,
    /// Storage version of a DuckDB file.
    pub duckdb_storage_version: String,
    /// The snapshot before it, when most of that stands in it, too.
    pub previous: Option<Previous>,
}

/// A published snapshot.
pub struct Previous {
    /// Its folder.
    pub folder: PathBuf,
    /// SHA-256, in hex, of its files that hold all tables, by their place in it.
    pub sha256: HashMap<String, String>,
}

/// A snapshot whose Parquet files are all written.
pub struct Staged<'s> {
    /// Its tables.
    pub schema: &'s Schema,
    /// Its number.
    pub snapshot: u32,
    /// When it is built.
    pub published_at: Timestamp,
    /// Number of the last change of the record store that is in it.
    pub state_change: i64,
    /// The law's tables.
    pub reference: &'s Reference,
    /// Link, resource and code of each latest refresh that failed.
    pub errors: &'s [(String, String, String)],
}

/// A table whose Parquet files are all written.
pub struct StagedTable {
    /// Its name.
    pub name: String,
    /// Its Parquet files.
    pub files: Vec<StagedFile>,
    /// Those of the snapshot before that this one has not; their whole paths.
    pub gone: Vec<PathBuf>,
    /// When few links may have other rows than in the snapshot before.
    pub few_changed: Option<FewChanged>,
}

/// The only links that may have other rows of a table than in the snapshot before.
pub struct FewChanged {
    /// Their ids.
    pub links: Vec<String>,
    /// The Parquet files that hold all rows that they have now, relative to the snapshot.
    pub files: HashSet<PathBuf>,
}

/// One Parquet file of a snapshot.
#[derive(Debug)]
pub struct StagedFile {
    /// Its place, relative to the snapshot.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// Whether the snapshot before has not the same file.
    pub is_new: bool,
}

/// Why a table could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be written.
    #[error("{path} cannot be written: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The Parquet writer failed.
    #[error("Parquet could not be written: {0}")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    /// Columns do not fit their table.
    #[error("columns do not fit their table: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// DuckDB failed.
    #[error("DuckDB could not build its file: {0}")]
    Duckdb(#[from] ::duckdb::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_but_parquet_has_one_sink() {
        for form in LakeForm::ALL {
            let sinks = ALL.iter().filter(|sink| sink.form() == form).count();
            assert_eq!(sinks, usize::from(form != LakeForm::Parquet), "{}", form.name());
        }
    }
}
