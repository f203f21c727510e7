//! The database that readers see: where it is, how it is opened, and how its SQL is written.
//!
//! *Gives* connections that read the one file, and nothing else. *Not here*: how it is made (`sinks::duckdb`), and what is
//! asked.

use std::io;
use std::path::{Path, PathBuf};

use duckdb::{AccessMode, Config, Connection};

/// Its name, in the lake and in each snapshot.
pub const FILE: &str = "vinculo.duckdb";

/// The database of the snapshot that is current now: whoever asks several questions asks one snapshot.
///
/// # Errors
/// The system's, when none is published.
pub fn published(lake: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(lake.join(FILE))
}

/// Opens a published database for reading. Nothing else can be read or loaded through it, and nothing personal is written
/// into temporary files.
///
/// # Errors
/// DuckDB's.
pub fn open(file: &Path) -> duckdb::Result<Connection> {
    let settings = Config::default()
        .access_mode(AccessMode::ReadOnly)?
        .enable_autoload_extension(false)?
        .with("autoinstall_known_extensions", "false")?
        .with("allow_community_extensions", "false")?;
    let connection = Connection::open_with_flags(file, settings)?;
    connection
        .execute_batch("SET temp_directory = ''; SET enable_external_access = false; SET lock_configuration = true;")?;
    Ok(connection)
}

/// A text as an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
