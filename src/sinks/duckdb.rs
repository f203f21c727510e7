//! Staged Parquet → `vinculo.duckdb`, the same tables in one file that every DuckDB from 1.1 on opens.
//!
//! *Promises* comments on every table and column, no connection to anywhere, and a file that is complete without its log.

use std::path::PathBuf;

use duckdb::{Config, Connection, params};

use super::{Error, Sink, Staged};
use crate::features::catalog;
use crate::schema::{Column, Schema, Table};

/// Its name in a snapshot.
pub const FILE: &str = "vinculo.duckdb";

/// Memory that DuckDB may use while it builds the file; beyond it, it writes to the staged folder.
const MEMORY: &str = "96MiB";

/// The table that is partitioned by date.
const FEATURES: &str = "credit_features";

/// The sink.
pub struct Duckdb;

impl Sink for Duckdb {
    fn name(&self) -> &'static str {
        "duckdb"
    }

    fn stage(&self, staged: &Staged<'_>) -> Result<Vec<PathBuf>, Error> {
        let connection = open(staged)?;
        for table in staged.schema.tables.iter().chain(&staged.schema.lake_tables) {
            create(&connection, table)?;
        }
        for table in &staged.schema.tables {
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
        catalog::complete(&connection, staged.reference, staged.errors)?;
        load_features(&connection, staged)?;
        connection.execute_batch("COMMIT; USE memory; CHECKPOINT lake; DETACH lake;")?;
        Ok(vec![FILE.into()])
    }
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
