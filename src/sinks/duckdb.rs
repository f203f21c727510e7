//! Staged Parquet → `vinculo.duckdb`, the same tables in one file that every DuckDB from 1.1 on opens.
//!
//! When little changed, it is a copy of the file before, whose checksum has to be right, with the rows of the Parquet files
//! that changed instead of those of the files before them. *Promises* comments on every table and column, no connection to
//! anywhere, and a file that is complete without its log. A file that is taken over may hold pages of rows that are gone:
//! whoever erases publishes everything.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use duckdb::{Config, Connection, params};
use sha2::{Digest, Sha256};

use super::{Error, Previous, Sink, Staged, StagedFile};
use crate::features::catalog;
use crate::schema::{Column, Schema, Table};
use crate::sensitive::hex;

/// Its name in a snapshot.
pub const FILE: &str = "vinculo.duckdb";

/// Memory that DuckDB may use while it builds the file; beyond it, it writes to the staged folder.
const MEMORY: &str = "96MiB";

/// Macros and views, each after those that it is made of. They name tables without a catalog: whoever attaches the file under
/// another name says `USE` first.
const VIEWS: [&str; 1] = [include_str!("views/as_of.sql")];

/// The SQL of the macros that show tables as they were known at an instant.
pub const AS_OF: &str = VIEWS[0];

/// The table that is partitioned by date.
const FEATURES: &str = "credit_features";

/// The sink.
pub struct Duckdb;

impl Sink for Duckdb {
    fn name(&self) -> &'static str {
        "duckdb"
    }

    fn stage(&self, staged: &Staged<'_>) -> Result<Vec<PathBuf>, Error> {
        let connection = match take_over(staged)? {
            Some(connection) => connection,
            None => make(staged)?,
        };
        connection.execute_batch("USE memory; CHECKPOINT lake; DETACH lake;")?;
        Ok(vec![FILE.into()])
    }
}

/// A new file.
fn make(staged: &Staged<'_>) -> Result<Connection, Error> {
    let connection = open(staged)?;
    // In transactions: each statement on its own would wait for the disk.
    connection.execute_batch("BEGIN TRANSACTION; USE lake")?;
    for table in staged.schema.tables.iter().chain(&staged.schema.lake_tables) {
        create(&connection, table)?;
    }
    connection.execute_batch("COMMIT")?;
    for table in &staged.schema.tables {
        load(&connection, &table.name, staged, |_| true)?;
    }
    connection.execute_batch("BEGIN TRANSACTION")?;
    catalog::fill_dictionary(&connection, &lines(staged.schema))?;
    VIEWS.iter().try_for_each(|sql| connection.execute_batch(sql))?;
    catalog::complete(&connection, staged.reference)?;
    load(&connection, FEATURES, staged, |_| true)?;
    tell_snapshot(&connection, staged)?;
    connection.execute_batch("COMMIT")?;
    Ok(connection)
}

/// The file before, with what changed; `None` when it is better made anew.
fn take_over(staged: &Staged<'_>) -> Result<Option<Connection>, Error> {
    let Some(previous) = &staged.previous else { return Ok(None) };
    if !is_worth_it(staged) || !copy_file(previous, staged)? {
        return Ok(None);
    }
    let replaced = open(staged).and_then(|connection| Ok((replace_rows(&connection, previous, staged)?, connection)));
    if let Ok((true, connection)) = replaced {
        return Ok(Some(connection));
    }
    remove(staged)?;
    Ok(None)
}

/// Whether most rows stand as they are.
fn is_worth_it(staged: &Staged<'_>) -> bool {
    let rows = |is_counted: fn(&StagedFile) -> bool| -> u64 {
        staged.files.iter().filter(|file| is_counted(file)).map(|file| file.rows).sum()
    };
    rows(|file| file.is_new) * 2 < rows(|_| true)
}

/// Copies the file before; false when it is not what its manifest says it is.
fn copy_file(previous: &Previous, staged: &Staged<'_>) -> Result<bool, Error> {
    let Some(expected) = previous.sha256.get(FILE) else { return Ok(false) };
    let path = staged.folder.join(FILE);
    let copied = copy(&previous.folder.join(FILE), &path).map_err(|source| Error::File { path, source })?;
    if copied != *expected {
        remove(staged)?;
    }
    Ok(copied == *expected)
}

/// Replaces the rows of the files that changed; false when the file is of another storage version. What else the file
/// holds depends on the program, the schemas and the configuration, which are the same.
fn replace_rows(connection: &Connection, previous: &Previous, staged: &Staged<'_>) -> Result<bool, Error> {
    let version: String = connection.query_row(
        "SELECT coalesce(tags['storage_version'], '') FROM duckdb_databases() WHERE database_name = 'lake'",
        [],
        |row| row.get(0),
    )?;
    if version.trim_end_matches('+') != staged.duckdb_storage_version {
        return Ok(false);
    }
    connection.execute_batch("BEGIN TRANSACTION; USE lake")?;
    for table in staged.schema.tables.iter().map(|table| table.name.as_str()).chain([FEATURES]) {
        let gone = previous.gone.get(table).map_or(&[][..], Vec::as_slice);
        if gone.is_empty() && !staged.files.iter().any(|file| file.table == table && file.is_new) {
            continue;
        }
        let stands = staged.files.iter().any(|file| file.table == table && !file.is_new && file.rows > 0);
        // A file holds all rows of its links, but only those of its date in the table that has a file for each.
        if stands && table != FEATURES {
            let gone: Vec<PathBuf> = gone.iter().map(|path| previous.folder.join(path)).collect();
            delete(connection, table, &gone)?;
            load(connection, table, staged, |file| file.is_new)?;
        } else {
            connection.execute_batch(&format!("TRUNCATE {table}"))?;
            load(connection, table, staged, |_| true)?;
        }
    }
    tell_snapshot(connection, staged)?;
    connection.execute_batch("COMMIT")?;
    Ok(true)
}

/// Deletes the rows of all links that the `files` hold.
fn delete(connection: &Connection, table: &str, files: &[PathBuf]) -> Result<(), Error> {
    if files.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "DELETE FROM {table} WHERE link_id IN (SELECT link_id FROM read_parquet([{}], hive_partitioning = false))",
        list(files.iter().map(PathBuf::as_path))
    );
    Ok(connection.execute_batch(&sql)?)
}

/// Says which snapshot this is, and what failed until then.
fn tell_snapshot(connection: &Connection, staged: &Staged<'_>) -> Result<(), Error> {
    connection.execute_batch("DELETE FROM meta_snapshot")?;
    connection.execute(
        "INSERT INTO meta_snapshot VALUES ($1, make_timestamptz($2::BIGINT), $3, $4)",
        params![staged.snapshot, staged.published_at.as_micros(), staged.state_change, env!("CARGO_PKG_VERSION")],
    )?;
    Ok(catalog::set_errors(connection, staged.errors)?)
}

/// Copies a file, and gives the SHA-256 of what it holds.
fn copy(from: &Path, to: &Path) -> io::Result<String> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    to.set_permissions(Permissions::from_mode(0o640))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
}

fn remove(staged: &Staged<'_>) -> Result<(), Error> {
    for name in [FILE.to_owned(), format!("{FILE}.wal")] {
        let path = staged.folder.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::File { path, source }),
            _ => {}
        }
    }
    Ok(())
}

fn open(staged: &Staged<'_>) -> Result<Connection, Error> {
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?
        .with("memory_limit", MEMORY)?
        // More would only wait: one file is read in order, and DuckDB waits for work by asking for it all the time.
        .with("threads", "1")?;
    let connection = Connection::open_in_memory_with_flags(config)?;
    // What is committed goes into the file at once: the log would be written first, and again into the file at the end.
    let before = staged.previous.as_ref().map(|previous| previous.folder.as_path());
    connection.execute_batch(&format!(
        "SET temp_directory = {temporary}; SET allowed_directories = [{folders}]; SET enable_external_access = false; \
         SET checkpoint_threshold = '1KB'; ATTACH {file} AS lake (STORAGE_VERSION {version}); SET lock_configuration = true;",
        folders = list([staged.folder].into_iter().chain(before)),
        temporary = quoted(&staged.folder.join("duckdb.tmp").to_string_lossy()),
        file = quoted(&staged.folder.join(FILE).to_string_lossy()),
        version = quoted(staged.duckdb_storage_version),
    ))?;
    Ok(connection)
}

fn create(connection: &Connection, table: &Table) -> Result<(), Error> {
    let Table { name, columns, .. } = table;
    let types: Vec<String> = columns.iter().map(|column| format!("{} {}", column.name, column.kind.duckdb())).collect();
    let key = table.key.join(", ");
    let meaning = quoted(&format!("{}; key: {key}", table.meaning));
    let mut statements = vec![
        format!("CREATE TABLE lake.{name} ({})", types.join(", ")),
        format!("COMMENT ON TABLE lake.{name} IS {meaning}"),
    ];
    statements.extend(
        columns
            .iter()
            .map(|column| format!("COMMENT ON COLUMN lake.{name}.{} IS {}", column.name, quoted(&column.comment()))),
    );
    Ok(connection.execute_batch(&statements.join("; "))?)
}

/// Loads the staged files of a table that are `wanted`.
fn load(
    connection: &Connection,
    table: &str,
    staged: &Staged<'_>,
    is_wanted: impl Fn(&StagedFile) -> bool,
) -> Result<(), Error> {
    let files = staged.files.iter().filter(|file| file.table == table && file.rows > 0 && is_wanted(file));
    let paths: Vec<PathBuf> = files.map(|file| staged.folder.join(&file.path)).collect();
    if paths.is_empty() {
        return Ok(());
    }
    // The key of a date's folder is not a column of its file; that of a bucket is not one of its table.
    let is_by_date = table == FEATURES;
    let sql = format!(
        "INSERT INTO lake.{table} BY NAME SELECT * FROM read_parquet([{}], hive_partitioning = {is_by_date})",
        list(paths.iter().map(PathBuf::as_path))
    );
    Ok(connection.execute_batch(&sql)?)
}

/// What the data dictionary says of the tables of the schemas.
fn lines(schema: &Schema) -> Vec<catalog::Line<'_>> {
    let mut lines = Vec::new();
    for table in schema.tables.iter().chain(&schema.lake_tables) {
        lines.push(catalog::Line { table: &table.name, meaning: &table.meaning, ..catalog::Line::default() });
        for (position, column) in (1..).zip(&table.columns) {
            let Column { name, kind, meaning, unit, null, sensitivity, example, .. } = column;
            lines.push(catalog::Line {
                table: &table.name,
                column: name,
                position,
                kind: Some(kind.duckdb()),
                is_key: table.is_key(name),
                meaning,
                unit: unit.as_deref(),
                null: Some(null),
                sensitivity: Some(sensitivity),
                example: Some(example),
                ..catalog::Line::default()
            });
        }
    }
    lines
}

/// Paths as the items of an SQL list.
fn list<'p>(paths: impl IntoIterator<Item = &'p Path>) -> String {
    let items: Vec<String> = paths.into_iter().map(|path| quoted(&path.to_string_lossy())).collect();
    items.join(", ")
}

/// A text as an SQL literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
