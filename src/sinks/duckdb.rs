//! Staged Parquet → `vinculo.duckdb`, the same tables in one file that every DuckDB from 1.1 on opens.
//!
//! Tables that did not change are taken over with a copy of the file before, whose checksum has to be right; the rest of
//! the file is always made anew. *Promises* comments on every table and column, no connection to anywhere, and a file that
//! is complete without its log. A file that is taken over may hold pages of rows that are gone: whoever erases publishes
//! everything.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use duckdb::{Config, Connection, params};
use sha2::{Digest, Sha256};

use super::{Error, Previous, Sink, Staged};
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
        let (connection, standing) = begin(staged)?;
        let is_new = |table: &&Table| !standing.contains(&table.name);
        for table in staged.schema.tables.iter().chain(&staged.schema.lake_tables).filter(is_new) {
            create(&connection, table)?;
        }
        for table in staged.schema.tables.iter().filter(is_new) {
            load(&connection, table, staged)?;
        }
        // One transaction: each statement on its own would wait for the disk.
        connection.execute_batch("BEGIN TRANSACTION")?;
        describe(&connection, staged.schema)?;
        connection.execute(
            "INSERT INTO lake.meta_snapshot VALUES ($1, make_timestamptz($2::BIGINT), $3, $4)",
            params![staged.snapshot, staged.published_at.as_micros(), staged.state_change, env!("CARGO_PKG_VERSION")],
        )?;
        connection.execute_batch("USE lake")?;
        VIEWS.iter().try_for_each(|sql| connection.execute_batch(sql))?;
        catalog::complete(&connection, staged.reference, staged.errors)?;
        if !standing.contains(FEATURES) {
            load_features(&connection, staged)?;
        }
        connection.execute_batch("COMMIT; USE memory; CHECKPOINT lake; DETACH lake;")?;
        Ok(vec![FILE.into()])
    }
}

/// A connection to a file that holds the tables which did not change and nothing else, and the names of these.
fn begin(staged: &Staged<'_>) -> Result<(Connection, HashSet<String>), Error> {
    if let Some(previous) = &staged.previous
        && is_taken_over(previous, staged)?
    {
        let taken_over =
            open(staged).and_then(|connection| Ok((keep_only(&connection, previous, staged)?, connection)));
        if let Ok((Some(standing), connection)) = taken_over {
            return Ok((connection, standing));
        }
        remove(staged)?;
    }
    Ok((open(staged)?, HashSet::new()))
}

/// Copies the file before, if it is worth it and what its manifest says it is.
fn is_taken_over(previous: &Previous, staged: &Staged<'_>) -> Result<bool, Error> {
    let has_rows = |table: &String| staged.files.iter().any(|file| file.table == *table && file.rows > 0);
    let Some(expected) = previous.sha256.get(FILE).filter(|_| previous.unchanged.iter().any(has_rows)) else {
        return Ok(false);
    };
    let path = staged.folder.join(FILE);
    let copied = copy(&previous.folder.join(FILE), &path).map_err(|source| Error::File { path, source })?;
    if copied != *expected {
        remove(staged)?;
    }
    Ok(copied == *expected)
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

/// Drops everything but the tables that did not change, and names these; `None` when the file is of another storage
/// version.
fn keep_only(
    connection: &Connection,
    previous: &Previous,
    staged: &Staged<'_>,
) -> Result<Option<HashSet<String>>, Error> {
    let version =
        names(connection, "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = 'lake'")?;
    if version.iter().all(|version| version.trim_end_matches('+') != staged.duckdb_storage_version) {
        return Ok(None);
    }
    let mine = "WHERE NOT internal AND database_name = 'lake'";
    for view in names(connection, &format!("SELECT view_name FROM duckdb_views() {mine}"))? {
        connection.execute_batch(&format!("DROP VIEW lake.{view}"))?;
    }
    for (kind, what) in [("macro", "MACRO"), ("table_macro", "MACRO TABLE")] {
        let macros =
            format!("SELECT DISTINCT function_name FROM duckdb_functions() {mine} AND function_type = '{kind}'");
        for name in names(connection, &macros)? {
            connection.execute_batch(&format!("DROP {what} lake.{name}"))?;
        }
    }
    let mut standing = HashSet::new();
    for table in names(connection, &format!("SELECT table_name FROM duckdb_tables() {mine}"))? {
        if previous.unchanged.contains(&table) {
            standing.insert(table);
        } else {
            connection.execute_batch(&format!("DROP TABLE lake.{table}"))?;
        }
    }
    Ok(Some(standing))
}

fn names(connection: &Connection, sql: &str) -> Result<Vec<String>, Error> {
    let mut select = connection.prepare(sql)?;
    let names = select.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

fn open(staged: &Staged<'_>) -> Result<Connection, Error> {
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?
        .with("memory_limit", MEMORY)?
        // More would only wait: one file is read in order, and DuckDB waits for work by asking for it all the time.
        .with("threads", "1")?;
    let connection = Connection::open_in_memory_with_flags(config)?;
    let folder = quoted(&staged.folder.to_string_lossy());
    connection.execute_batch(&format!(
        "SET temp_directory = {temporary}; SET allowed_directories = [{folder}]; SET enable_external_access = false; \
         ATTACH {file} AS lake (STORAGE_VERSION {version}); SET lock_configuration = true;",
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

fn load(connection: &Connection, table: &Table, staged: &Staged<'_>) -> Result<(), Error> {
    let files: Vec<String> = staged
        .files
        .iter()
        .filter(|file| file.table == table.name && file.rows > 0)
        .map(|file| quoted(&staged.folder.join(&file.path).to_string_lossy()))
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let sql = format!(
        "INSERT INTO lake.{} SELECT {} FROM read_parquet([{}], hive_partitioning = false)",
        table.name,
        columns.join(", "),
        files.join(", ")
    );
    connection.execute_batch(&sql)?;
    Ok(())
}

/// The partitions of `credit_features`, whose key is not a column of theirs.
fn load_features(connection: &Connection, staged: &Staged<'_>) -> Result<(), Error> {
    for file in staged.files.iter().filter(|file| file.table == FEATURES && file.rows > 0) {
        let path = quoted(&staged.folder.join(&file.path).to_string_lossy());
        connection.execute_batch(&format!(
            "INSERT INTO lake.{FEATURES} SELECT link_id, as_of_date, * EXCLUDE (link_id, as_of_date) \
             FROM read_parquet({path}, hive_partitioning = true)"
        ))?;
    }
    Ok(())
}

/// Fills the data dictionary.
fn describe(connection: &Connection, schema: &Schema) -> Result<(), Error> {
    let mut insert = connection
        .prepare("INSERT INTO lake.data_dictionary VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL)")?;
    for table in schema.tables.iter().chain(&schema.lake_tables) {
        let nothing: Option<&str> = None;
        insert.execute(params![
            table.name,
            "",
            0,
            nothing,
            false,
            table.meaning,
            nothing,
            nothing,
            nothing,
            nothing
        ])?;
        for (position, column) in (1_i32..).zip(&table.columns) {
            let Column { name, kind, meaning, unit, null, sensitivity, example, .. } = column;
            let is_key = table.is_key(name);
            insert.execute(params![
                table.name,
                name,
                position,
                kind.duckdb(),
                is_key,
                meaning,
                unit,
                null,
                sensitivity,
                example
            ])?;
        }
    }
    Ok(())
}

/// A text as an SQL literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
