//! Tables → rows of `credit_features`, batch by batch of links, one on each core.
//!
//! *Takes* the Parquet files of a snapshot that is being staged, or an attached `vinculo.duckdb`. *Gives* rows, sorted
//! by link. *Promises* memory that does not grow with the number of links: the same SQL as the macro sees only the
//! links of one batch, whose rows lie together in the files.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{self, AtomicUsize};

use duckdb::{Connection, params};

use super::catalog;
use super::dictionary;
use super::runs::Run;
use crate::database::{quoted, without_extensions};
use crate::reference::Reference;

/// The tables that features are computed from.
pub const SOURCES: [&str; 5] =
    ["links", "link_snapshots", "employments_history", "salaries_history", "occupations_history"];

/// Links of a batch: enough that planning the SQL is a small part, few enough for [`MEMORY`] with [`MOST_WORKERS`] of
/// them.
const BATCH: usize = 2_500;

/// Links of a batch when there are few in all: each worker then reads its own part of the files.
const LEAST_BATCH: usize = 100;

/// Batches that are computed at a time: one query does not keep several cores busy, but several queries do.
const MOST_WORKERS: usize = 4;

/// Memory that DuckDB may use; beyond it, it writes to [`TEMPORARY`].
const MEMORY: &str = "512MiB";

/// Where it does, in the working folder. Its own: the sink of `vinculo.duckdb` works in the same one.
const TEMPORARY: &str = "features.tmp";

/// What tells the rows of a file that [`Computer::write`] wrote apart; they stand in the order of these texts.
pub const KEY: [&str; 2] = ["link_id", "pit_mode"];

/// The first link of a batch, and that of the one after.
type Batch = (String, Option<String>);

/// Computes features of one set of tables.
pub struct Computer {
    connection: Connection,
    /// Where the rows of each source are, as SQL.
    sources: [String; 5],
    /// Where those of the links are that [`Computer::add`] is told, among others perhaps.
    of_wanted: [String; 5],
}

impl Computer {
    /// A computer over Parquet files in the folder `work`, where temporary files go, too; `files` names those of a
    /// table, and `of_wanted` a smaller one, if there is one, that has all rows of the links that [`Computer::add`]
    /// will be told.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn over_parquet(
        files: impl Fn(&str) -> Vec<PathBuf>,
        of_wanted: impl Fn(&str) -> Option<PathBuf>,
        work: &Path,
        reference: &Reference,
    ) -> duckdb::Result<Self> {
        let connection = open(Some(work), None)?;
        let read = |files: &[PathBuf]| {
            let files: Vec<String> = files.iter().map(|file| quoted(&file.to_string_lossy())).collect();
            format!("read_parquet([{}], hive_partitioning = false)", files.join(", "))
        };
        let sources = SOURCES.map(|table| read(&files(table)));
        let of_wanted = SOURCES.map(|table| of_wanted(table).map_or_else(|| read(&files(table)), |file| read(&[file])));
        Self::prepared(connection, sources, of_wanted, reference)
    }

    /// A computer over the `vinculo.duckdb` at `file`.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn over_duckdb(file: &Path, reference: &Reference) -> duckdb::Result<Self> {
        let connection = open(None, Some(file))?;
        let sources = SOURCES.map(|table| format!("lake.{table}"));
        Self::prepared(connection, sources.clone(), sources, reference)
    }

    fn prepared(
        connection: Connection,
        sources: [String; 5],
        of_wanted: [String; 5],
        reference: &Reference,
    ) -> duckdb::Result<Self> {
        let columns = &dictionary::relation("credit_features").columns;
        let columns: Vec<String> = columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
        connection.execute_batch(&format!(
            "CREATE TABLE wanted (link_id VARCHAR); CREATE TABLE unwanted (link_id VARCHAR); CREATE TABLE result ({})",
            columns.join(", ")
        ))?;
        let computer = Self { connection, sources, of_wanted };
        computer.look_at("true")?;
        catalog::create_macros(&computer.connection, reference)?;
        Ok(computer)
    }

    /// The connection, whose macros see the links that were last looked at.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Lets the macros see only links for which `condition` holds.
    pub(super) fn look_at(&self, condition: &str) -> duckdb::Result<()> {
        look_at(&self.connection, &self.sources, condition)
    }

    /// Adds the rows of `run`: of all links but `unwanted`, or only of `wanted`.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn add(&self, run: &Run, wanted: Option<&[String]>, unwanted: &[String]) -> duckdb::Result<()> {
        fill(&self.connection, "wanted", wanted.unwrap_or_default())?;
        fill(&self.connection, "unwanted", unwanted)?;
        // What leaves nothing out is not asked for: it would be planned and prepared for each table of each batch.
        let mut of_run = "true".to_owned();
        if wanted.is_some() {
            of_run += " AND link_id IN (SELECT link_id FROM wanted)";
        }
        if !unwanted.is_empty() {
            of_run += " AND link_id NOT IN (SELECT link_id FROM unwanted)";
        }
        let batches = match wanted {
            Some(wanted) => batches_of(wanted),
            None => self.batches(&of_run)?,
        };
        let sources = if wanted.is_some() { &self.of_wanted } else { &self.sources };
        let next = AtomicUsize::new(0);
        let insert = format!(
            "INSERT INTO result SELECT * FROM credit_features(DATE '{}', make_timestamptz({}::BIGINT), {})",
            run.as_of,
            run.known_at.as_micros(),
            run.lag_months
        );
        let work = |connection: &Connection| {
            while let Some((from, to)) = batches.get(next.fetch_add(1, atomic::Ordering::Relaxed)) {
                let until = to.as_ref().map(|to| format!(" AND link_id < {}", quoted(to))).unwrap_or_default();
                look_at(connection, sources, &format!("{of_run} AND link_id >= {}{until}", quoted(from)))?;
                connection.execute_batch(&insert)?;
            }
            Ok(())
        };
        let others = workers().min(batches.len()).saturating_sub(1);
        let others = (0..others).map(|_| self.connection.try_clone()).collect::<duckdb::Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let others: Vec<_> = others.into_iter().map(|connection| scope.spawn(move || work(&connection))).collect();
            let mine = work(&self.connection);
            let results = others.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
            results.fold(mine, Result::and)
        })
    }

    /// Writes what was added into a Parquet file, in the order of [`KEY`], forgets it, and gives the number of rows. It
    /// is not for readers: DuckDB cannot leave out the least and the greatest value of each column, which are
    /// somebody's.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn write(&self, file: &Path) -> duckdb::Result<u64> {
        // It is read once, and soon.
        let rows = self.connection.execute(
            &format!(
                "COPY (SELECT * EXCLUDE (as_of_date) FROM result ORDER BY {}) TO {} \
                 (FORMAT parquet, COMPRESSION uncompressed, KV_METADATA {{'vinculo.table': 'credit_features', \
                 'vinculo.schema_version': '{}'}})",
                KEY.join(", "),
                quoted(&file.to_string_lossy()),
                dictionary::version(),
            ),
            [],
        )?;
        self.connection.execute_batch("DELETE FROM result")?;
        Ok(rows as u64)
    }

    /// First link of each batch of those for which `condition` holds, and of the one after.
    fn batches(&self, condition: &str) -> duckdb::Result<Vec<Batch>> {
        let Self { connection, sources: [links, ..], .. } = self;
        let count = format!("SELECT count(*) FROM {links} WHERE {condition}");
        let count: i64 = connection.query_row(&count, [], |row| row.get(0))?;
        let mut statement = connection.prepare(&format!(
            "SELECT link_id FROM (SELECT link_id, row_number() OVER (ORDER BY link_id) AS number FROM {links} WHERE {condition}) \
             WHERE (number - 1) % {size} = 0 ORDER BY link_id",
            size = batch_size(usize::try_from(count).unwrap_or_default()),
        ))?;
        let firsts = statement.query_map([], |row| row.get(0))?.collect::<duckdb::Result<Vec<String>>>()?;
        Ok(with_nexts(&firsts))
    }
}

fn fill(connection: &Connection, table: &str, link_ids: &[String]) -> duckdb::Result<()> {
    connection.execute_batch(&format!("DELETE FROM {table}"))?;
    let mut appender = connection.appender(table)?;
    link_ids.iter().try_for_each(|link_id| appender.append_row(params![link_id]))?;
    appender.flush()
}

/// First link of each batch of these.
fn batches_of(links: &[String]) -> Vec<Batch> {
    let mut links: Vec<&String> = links.iter().collect();
    links.sort_unstable();
    let firsts: Vec<String> = links.chunks(batch_size(links.len())).map(|batch| batch[0].clone()).collect();
    with_nexts(&firsts)
}

fn with_nexts(firsts: &[String]) -> Vec<Batch> {
    let nexts = firsts.iter().skip(1).cloned().map(Some).chain([None]);
    firsts.iter().cloned().zip(nexts).collect()
}

/// Links of a batch when there are `links` in all.
fn batch_size(links: usize) -> usize {
    links.div_ceil(workers()).clamp(LEAST_BATCH, BATCH)
}

/// Lets the macros see, on this connection, only links for which `condition` holds.
fn look_at(connection: &Connection, sources: &[String; 5], condition: &str) -> duckdb::Result<()> {
    let views = SOURCES.iter().zip(sources).map(|(table, source)| {
        format!("CREATE OR REPLACE TEMP VIEW {table} AS SELECT * FROM {source} WHERE {condition}")
    });
    connection.execute_batch(&views.collect::<Vec<_>>().join("; "))
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(MOST_WORKERS)
}

/// A connection that reaches the folder `work` and the file `lake`, and nothing else.
fn open(work: Option<&Path>, lake: Option<&Path>) -> duckdb::Result<Connection> {
    let config = without_extensions()?
        .with("memory_limit", MEMORY)?
        // Those of the workers are used besides.
        .with("threads", "1")?
        // Rows are sorted when they are written; before that their order is nobody's business.
        .with("preserve_insertion_order", "false")?;
    let connection = Connection::open_in_memory_with_flags(config)?;
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let temporary = work.map(|work| work.join(TEMPORARY)).unwrap_or_default();
    let attach = lake.map(|lake| format!("ATTACH {} AS lake (READ_ONLY);", path(lake)));
    connection.execute_batch(&format!(
        "{} SET temp_directory = {}; SET allowed_directories = [{}]; SET enable_external_access = false; \
         SET lock_configuration = true;",
        attach.unwrap_or_default(),
        path(&temporary),
        work.map(path).unwrap_or_default(),
    ))?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_follow_each_other_and_leave_no_link_out() {
        let links: Vec<String> = (0..1_000).rev().map(|number| format!("{number:04}")).collect();
        let batches = batches_of(&links);
        let seen = |link: &String| {
            batches.iter().filter(|(from, to)| from <= link && to.as_ref().is_none_or(|to| link < to)).count()
        };
        assert!(links.iter().all(|link| seen(link) == 1));
        assert_eq!(batches.len(), workers().min(links.len() / LEAST_BATCH));
        assert!(batches_of(&[]).is_empty());
    }
}
