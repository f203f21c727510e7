//! Staged Parquet → `vinculo.duckdb`, the same tables in one file that every DuckDB from 1.1 on opens.
//!
//! When little changed, it is a copy of the file before, whose checksum has to be right, with the rows of the Parquet
//! files that changed instead of those of the files before them. *Promises* comments on every table and column, no
//! connection to anywhere, and a file that is complete without its log. A file that is taken over may hold pages of
//! rows that are gone: whoever erases publishes everything.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use duckdb::{Connection, params};
use sha2::{Digest, Sha256};

use super::{Begun, Error, Sink, Staged, StagedFile, StagedTable, Target};
use crate::config::LakeForm;
use crate::database::{FILE, LITTLE_MEMORY, quoted, without_extensions};
use crate::features::{TABLE as FEATURES, catalog};
use crate::lane::Lane;
use crate::schema::{Column, Schema, Table};
use crate::sensitive::hex;

/// Macros and views, each after those that it is made of. They name tables without a catalog: whoever attaches the file
/// under another name says `USE` first.
const VIEWS: [&str; 1] = [include_str!("views/as_of.sql")];

/// The SQL of the macros that show tables as they were known at an instant.
pub const AS_OF: &str = VIEWS[0];

/// Tables that may wait for their rows to be replaced: more than there are.
const WAITING_TABLES: usize = 64;

/// Where DuckDB writes what does not fit into memory, in the staged folder. Its own: DuckDB does not remove one in the
/// end in which another one was at work.
const TEMPORARY: &str = "lake.tmp";

/// The sink.
pub struct Duckdb;

impl Sink for Duckdb {
    fn form(&self) -> LakeForm {
        LakeForm::Duckdb
    }

    fn files(&self) -> &'static [&'static str] {
        &[FILE]
    }

    fn begin(&self, target: Target) -> Result<Box<dyn Begun>, Error> {
        let target = Arc::new(target);
        let replacer = target.previous.is_some().then(|| {
            let target = Arc::clone(&target);
            Lane::start("lake-replacer", WAITING_TABLES, move |coming| replace_tables(&target, &coming))
        });
        let unstarted = |source| Error::File { path: target.folder.join(FILE), source };
        let replacer = replacer.transpose().map_err(unstarted)?;
        Ok(Box::new(File { target, tables: Vec::new(), replacer, written: None }))
    }
}

/// Replaces rows in a copy of the file before, and gives it when it is of use.
type Replacer = Lane<Arc<StagedTable>, Result<Option<Connection>, Error>>;

/// The file, on its way.
struct File {
    target: Arc<Target>,
    /// The tables so far.
    tables: Vec<Arc<StagedTable>>,
    /// Replaces rows in a copy of the file before, table by table, while others are written. None when there is no file
    /// before, and once it was waited for.
    replacer: Option<Replacer>,
    /// What wrote the file, which is whole: it takes a while to go.
    written: Option<Connection>,
}

impl Begun for File {
    fn take(&mut self, table: Arc<StagedTable>) {
        if let Some(replacer) = &self.replacer {
            // When the thread has ended, it says why at the end.
            replacer.take(Arc::clone(&table));
        }
        self.tables.push(table);
    }

    fn stage(&mut self, staged: &Staged<'_>) -> Result<Vec<PathBuf>, Error> {
        // Whatever is wrong with the file before, a new one can be made.
        let replaced = self.replacer.take().and_then(|replacer| replacer.finish().ok().flatten());
        let standing = replaced.filter(|replaced| is_worth_it(&self.tables) && complete(replaced, staged).is_ok());
        let connection = if let Some(connection) = standing {
            connection
        } else {
            remove(&self.target)?;
            make(&self.target, &self.tables, staged)?
        };
        connection.execute_batch("USE memory; CHECKPOINT lake; DETACH lake;")?;
        self.written = Some(connection);
        Ok(vec![FILE.into()])
    }
}

/// A new file.
fn make(target: &Target, tables: &[Arc<StagedTable>], staged: &Staged<'_>) -> Result<Connection, Error> {
    let connection = start()?;
    attach(&connection, target)?;
    // In transactions: each statement on its own would wait for the disk.
    connection.execute_batch("BEGIN TRANSACTION; USE lake")?;
    for table in staged.schema.tables.iter().chain(&staged.schema.lake_tables) {
        create(&connection, table)?;
    }
    connection.execute_batch("COMMIT")?;
    // Features stand in a table that is created after those they are computed from.
    let (features, tables): (Vec<_>, Vec<_>) = tables.iter().partition(|table| table.name == FEATURES);
    let fill = |tables: &[&Arc<StagedTable>]| {
        tables.iter().try_for_each(|table| load(&connection, &target.folder, &table.name, &table.files, ""))
    };
    fill(&tables)?;
    connection.execute_batch("BEGIN TRANSACTION")?;
    catalog::fill_dictionary(&connection, &lines(staged.schema))?;
    VIEWS.iter().try_for_each(|sql| connection.execute_batch(sql))?;
    catalog::complete(&connection, staged.reference)?;
    fill(&features)?;
    tell_snapshot(&connection, staged)?;
    connection.execute_batch("COMMIT")?;
    Ok(connection)
}

/// The file before, copied and opened; `None` when it is not what its manifest says it is, or of another storage
/// version.
fn take_over(target: &Target) -> Result<Option<Connection>, Error> {
    let Some(previous) = &target.previous else { return Ok(None) };
    let Some(expected) = previous.sha256.get(FILE) else { return Ok(None) };
    let path = target.folder.join(FILE);
    // DuckDB needs about as long to start as the copy.
    let (started, copied) = std::thread::scope(|scope| {
        let starting = scope.spawn(start);
        let copied = copy(&previous.folder.join(FILE), &path);
        (starting.join(), copied)
    });
    let connection = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    if copied.map_err(|source| Error::File { path, source })? != *expected {
        return Ok(None);
    }
    // Its table of symbols costs a column of few rows as much as one of many: most of what writing them takes.
    connection.execute_batch("SET disabled_compression_methods = 'fsst'")?;
    attach(&connection, target)?;
    let version: String = connection.query_row(
        "SELECT coalesce(tags['storage_version'], '') FROM duckdb_databases() WHERE database_name = 'lake'",
        [],
        |row| row.get(0),
    )?;
    Ok((version.trim_end_matches('+') == target.duckdb_storage_version).then_some(connection))
}

/// Whether most rows stand as they are.
fn is_worth_it(tables: &[Arc<StagedTable>]) -> bool {
    let rows = |is_counted: fn(&StagedFile) -> bool| -> u64 {
        tables.iter().flat_map(|table| &table.files).filter(|file| is_counted(file)).map(|file| file.rows).sum()
    };
    rows(|file| file.is_new) * 2 < rows(|_| true)
}

/// The file before, copied, with the rows that changed replaced in the tables that come, in a transaction that is open;
/// `None` when it is of no use.
fn replace_tables(target: &Target, coming: &Receiver<Arc<StagedTable>>) -> Result<Option<Connection>, Error> {
    let Some(connection) = take_over(target)? else { return Ok(None) };
    connection.execute_batch("BEGIN TRANSACTION; USE lake; CREATE TEMP TABLE changed (link_id VARCHAR)")?;
    for table in coming {
        if !replace_rows(&connection, &target.folder, &table)? {
            return Ok(None);
        }
    }
    Ok(Some(connection))
}

/// Replaces the rows of a table that changed; false when it then has not as many as its Parquet files.
fn replace_rows(connection: &Connection, folder: &Path, staged: &StagedTable) -> Result<bool, Error> {
    let StagedTable { name: table, files, gone, few_changed } = staged;
    if gone.is_empty() && !files.iter().any(|file| file.is_new) {
        return Ok(true);
    }
    let stands = files.iter().any(|file| !file.is_new && file.rows > 0);
    if let Some(few) = few_changed {
        connection.execute_batch("DELETE FROM changed")?;
        let mut changed = connection.appender("changed")?;
        few.links.iter().try_for_each(|link_id| changed.append_row([link_id]))?;
        changed.flush()?;
        let of_changed = "WHERE link_id IN (SELECT link_id FROM changed)";
        connection.execute_batch(&format!("DELETE FROM {table} {of_changed}"))?;
        load(connection, folder, table, files.iter().filter(|file| few.files.contains(&file.path)), of_changed)?;
    } else if stands {
        if table == FEATURES {
            let new = files.iter().filter(|file| file.is_new).map(|file| file.path.as_path());
            delete_dates(connection, gone.iter().map(PathBuf::as_path).chain(new))?;
        } else {
            delete(connection, table, gone)?;
        }
        load(connection, folder, table, files.iter().filter(|file| file.is_new), "")?;
    } else {
        connection.execute_batch(&format!("TRUNCATE {table}"))?;
        load(connection, folder, table, files, "")?;
    }
    let rows: u64 = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
    Ok(rows == files.iter().map(|file| file.rows).sum::<u64>())
}

/// Completes a file whose rows are replaced. What else it holds depends on the program, the schemas and the
/// configuration, which are the same.
fn complete(connection: &Connection, staged: &Staged<'_>) -> Result<(), Error> {
    tell_snapshot(connection, staged)?;
    Ok(connection.execute_batch("COMMIT")?)
}

/// Deletes the features of the dates of these files, each of which holds all rows of its date.
fn delete_dates<'f>(connection: &Connection, files: impl Iterator<Item = &'f Path>) -> Result<(), Error> {
    let dates: BTreeSet<String> = files.filter_map(date_of).map(|date| format!("DATE {}", quoted(date))).collect();
    if dates.is_empty() {
        return Ok(());
    }
    let dates = Vec::from_iter(dates).join(", ");
    Ok(connection.execute_batch(&format!("DELETE FROM {FEATURES} WHERE as_of_date IN ({dates})"))?)
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

/// Copies a file to the disk, and gives the SHA-256 of what the copy holds.
fn copy(from: &Path, to: &Path) -> io::Result<String> {
    let mut copy = OpenOptions::new().read(true).write(true).create_new(true).open(to)?;
    copy.set_permissions(Permissions::from_mode(0o640))?;
    io::copy(&mut fs::File::open(from)?, &mut copy)?;
    copy.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    // DuckDB would wait for the disk when there is nothing else to do.
    let synced = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| copy.sync_data());
        loop {
            match (&copy).read(&mut buffer)? {
                0 => return syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                read => hash.update(&buffer[..read]),
            }
        }
    });
    synced.map(|()| hex(&hash.finalize()))
}

fn remove(target: &Target) -> Result<(), Error> {
    for name in [FILE.to_owned(), format!("{FILE}.wal")] {
        let path = target.folder.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::File { path, source }),
            _ => {}
        }
    }
    Ok(())
}

/// A DuckDB without a file.
fn start() -> Result<Connection, Error> {
    let config = without_extensions()?
        // Beyond it, it writes to the staged folder.
        .with("memory_limit", LITTLE_MEMORY)?
        // More would only wait: one file is read in order, and DuckDB waits for work by asking for it all the time.
        .with("threads", "1")?;
    Ok(Connection::open_in_memory_with_flags(config)?)
}

/// Opens the staged file as the catalog `lake`, and closes the way to everything but it and its Parquet.
fn attach(connection: &Connection, target: &Target) -> Result<(), Error> {
    // What is committed goes into the file at once: the log would be written first, and again into the file at the end.
    let before = target.previous.as_ref().map(|previous| previous.folder.as_path());
    connection.execute_batch(&format!(
        "SET temp_directory = {temporary}; SET allowed_directories = [{folders}]; SET enable_external_access = false; \
         SET checkpoint_threshold = '1KB'; ATTACH {file} AS lake (STORAGE_VERSION {version}); SET lock_configuration = true;",
        folders = list([target.folder.as_path()].into_iter().chain(before)),
        temporary = quoted(&target.folder.join(TEMPORARY).to_string_lossy()),
        file = quoted(&target.folder.join(FILE).to_string_lossy()),
        version = quoted(&target.duckdb_storage_version),
    ))?;
    Ok(())
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

/// Loads, of files of `table` that are staged in `folder`, the rows that `condition` leaves.
fn load<'f>(
    connection: &Connection,
    folder: &Path,
    table: &str,
    files: impl IntoIterator<Item = &'f StagedFile>,
    condition: &str,
) -> Result<(), Error> {
    let files: Vec<&StagedFile> = files.into_iter().filter(|file| file.rows > 0).collect();
    if files.is_empty() {
        return Ok(());
    }
    // Never `hive_partitioning`: DuckDB looks for keys in the whole path, and the folder of the lake may be in
    // `env=prod`.
    let insert = |columns: &str, files: &[&StagedFile]| {
        let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.path)).collect();
        connection.execute_batch(&format!(
            "INSERT INTO lake.{table} BY NAME SELECT {columns} FROM read_parquet([{}], hive_partitioning = false) {condition}",
            list(paths.iter().map(PathBuf::as_path))
        ))
    };
    if table != FEATURES {
        // That of a bucket's folder is not a column of its table.
        return Ok(insert("*", &files)?);
    }
    // That of a date's folder is a column of its table, but not of its file.
    for file in files {
        let Some(date) = date_of(&file.path) else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is in no folder of a date");
            return Err(Error::File { path: file.path.clone(), source });
        };
        insert(&format!("*, DATE {} AS as_of_date", quoted(date)), &[file])?;
    }
    Ok(())
}

/// The date whose features a file holds, as its folder says.
fn date_of(file: &Path) -> Option<&str> {
    file.parent()?.file_name()?.to_str()?.strip_prefix("as_of_date=")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_loaded_of_the_dates_whose_files_are_new_and_stand_of_the_others() {
        let folder = tempfile::Builder::new().prefix("as_of_date=2026-04-30").tempdir().unwrap();
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "ATTACH ':memory:' AS lake; USE lake; CREATE TABLE credit_features (link_id VARCHAR, as_of_date DATE, pay INTEGER); \
                 INSERT INTO credit_features SELECT 'a', unnest([DATE '2026-01-31', '2026-02-28', '2026-03-31']), 1",
            )
            .unwrap();
        let path = |date: &str| PathBuf::from(format!("credit_features/as_of_date={date}/part-0.parquet"));
        let file = |date: &str, is_new: bool| {
            if is_new {
                let path = folder.path().join(path(date));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let to = quoted(path.to_str().unwrap());
                connection.execute_batch(&format!("COPY (SELECT 'a' AS link_id, 2 AS pay) TO {to}")).unwrap();
            }
            StagedFile { path: path(date), rows: 1, is_new }
        };
        let staged = StagedTable {
            name: FEATURES.to_owned(),
            // The first is not there to be read.
            files: vec![file("2026-01-31", false), file("2026-02-28", true), file("2026-04-30", true)],
            gone: ["2026-02-28", "2026-03-31"].map(|date| Path::new("/before").join(path(date))).into(),
            few_changed: None,
        };
        connection.execute_batch("BEGIN TRANSACTION").unwrap();
        assert!(replace_rows(&connection, folder.path(), &staged).unwrap());
        connection.execute_batch("COMMIT").unwrap();
        let rows = "SELECT string_agg(as_of_date || ': ' || pay, ', ' ORDER BY as_of_date) FROM credit_features";
        let rows: String = connection.query_row(rows, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, "2026-01-31: 1, 2026-02-28: 2, 2026-04-30: 2");
    }
}
