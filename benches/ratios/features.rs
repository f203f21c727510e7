//! Features of 100,000 links, against the same formulas as one statement over the history tables.
//!
//! The tables are those of simulated people, each fifty times under other keys. The statement is ours without what
//! makes it quick: every step is a part of the one question, asked again wherever it is named, over all links at once,
//! joined by the keys of the tables. It is compared on a tenth of the links, because all of them do not fit into this
//! machine's memory.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::compute::cast;
use duckdb::Connection;
use tempfile::TempDir;
use vinculo::clock::Timestamp;
use vinculo::features::catalog;
use vinculo::features::compute::{self, Computer, SOURCES};
use vinculo::features::runs::{self, Mode, Run};
use vinculo::reference::Reference;
use vinculo::schema::{self, Column, Table};
use vinculo::sinks::parquet::{self, Kit, TableWriter};

use crate::measure::{aim, aim_below};

const PEOPLE: u32 = 2_000;
const TIMES: u32 = 50;
/// How often each side is measured.
const ROUNDS: usize = 3;
/// What the statement may use; ours has a fraction of it.
const MEMORY_OF_THE_STATEMENT: &str = "10GB";

pub(crate) fn run() -> anyhow::Result<bool> {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let demo = folder.path().join("demo");
    let made = Command::new(env!("CARGO_BIN_EXE_vinculo"))
        .args(["demo", "--log-level", "error", "--people", &PEOPLE.to_string(), "--dir"])
        .arg(&demo)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(made.success(), "the demo ended with {made}");
    let (whole, tenth) = (folder.path().join("whole"), folder.path().join("tenth"));
    let rows = multiply(&demo.join("lake/current"), &whole, TIMES)?;
    multiply(&demo.join("lake/current"), &tenth, TIMES / 10)?;

    // From here on the highest size counts.
    fs::write("/proc/self/clear_refs", "5").context("the kernel forgets the highest size")?;
    let links = PEOPLE * TIMES;
    let changed = Changed::of(&whole, links / 100)?;
    // Each the best of its rounds, which alternate: what else the machine does slows all of them down, or none.
    let (mut all, mut some) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        all = all.min(ours(&whole, None, links)?);
        some = some.min(ours(&whole, Some(&changed), links)?);
    }
    let highest = high_water()?;
    println!("  {links} links, {rows} salary rows: {:.1} s, highest resident size {highest:.0} MiB", all.as_secs_f64());
    println!("  1 % of the links changed: {:.2} s", some.as_secs_f64());

    let (mut quick, mut plain) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        quick = quick.min(ours(&tenth, None, links / 10)?);
        plain = plain.min(statement(&tenth)?);
    }
    println!("  {} links: {:.2} s, the one statement {:.2} s", links / 10, quick.as_secs_f64(), plain.as_secs_f64());
    let reached = [
        aim("the one statement / ours", plain.as_secs_f64() / quick.as_secs_f64(), 5.0),
        aim_below("highest resident size in MiB", highest, 2048.0),
        aim_below("changed links in % of the whole", 100.0 * some.as_secs_f64() / all.as_secs_f64(), 5.0),
    ];
    Ok(reached.into_iter().all(|reached| reached))
}

fn the_run() -> Run {
    let as_of = chrono::NaiveDate::from_ymd_opt(2026, 11, 20).unwrap_or_default();
    let known_at = runs::end_of(as_of);
    Run { as_of, mode: Mode::Strict, known_at, lag_months: 1, ran_at: Timestamp::from_micros(0), change: 0 }
}

/// Writes each source `times` times under other keys, as the lake's files are written; gives the salary rows.
fn multiply(lake: &Path, to: &Path, times: u32) -> anyhow::Result<u64> {
    fs::create_dir_all(to)?;
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(&format!("SET temp_directory = '{}'; SET TimeZone = 'UTC'", to.join("tmp").display()))?;
    let mut salaries = 0;
    for name in SOURCES {
        let table = schema::get().table(name);
        let columns = table.columns.iter().map(|Column { name, .. }| match name.as_str() {
            "link_id" | "employment_key" => format!("md5({name} || n) AS {name}"),
            _ => name.clone(),
        });
        let mut rows = connection.prepare(&format!(
            "SELECT {} FROM read_parquet('{}/{name}/*/*.parquet', hive_partitioning = false), range({times}) AS r(n) \
             ORDER BY {}",
            columns.collect::<Vec<_>>().join(", "),
            lake.display(),
            if table.is_key("employment_key") { "link_id, employment_key" } else { "link_id" },
        ))?;
        let mut file = TableWriter::create(&file(to, name), Kit::new(table)?)?;
        for batch in rows.stream_arrow([])? {
            file.write(&as_published(&batch?, table)?)?;
        }
        let (rows, _) = file.finish()?;
        if name == "salaries_history" {
            salaries = rows;
        }
    }
    Ok(salaries)
}

/// Rows of DuckDB's as the lake's writer takes them.
fn as_published(rows: &RecordBatch, table: &Table) -> anyhow::Result<RecordBatch> {
    let columns = rows.columns().iter().zip(table.batch.fields());
    let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(&table.batch), columns)?)
}

fn file(folder: &Path, table: &str) -> PathBuf {
    folder.join(format!("{table}.parquet"))
}

/// Writes a row for each of `links` links as a publish does, and gives the time: computes all, or only those that
/// changed, whose rows of the sources it has in memory, and keeps the others of the file that it wrote before.
fn ours(folder: &Path, changed: Option<&Changed>, links: u32) -> anyhow::Result<Duration> {
    let (earlier, out) = (folder.join("earlier.parquet"), folder.join("credit_features.parquet"));
    let started = Instant::now();
    if let Some(changed) = changed {
        changed.write(folder)?;
    }
    let of_wanted = |table: &str| changed?.file(folder, table);
    let all = |table: &str| vec![file(folder, table)];
    let computer = Computer::over_parquet(all, of_wanted, folder, &Reference::compiled())?;
    computer.add(&the_run(), changed.map(|changed| changed.links.as_slice()), &[])?;
    let (computed, none) = (folder.join("computed.parquet"), folder.join("none.parquet"));
    computer.write(&computed)?;
    let rows = match changed {
        None => {
            computer.write(&none)?;
            parquet::splice([&none, &computed], &out, compute::KEY, |_| true)?
        }
        Some(changed) => {
            let all_but: HashSet<&[u8]> = changed.links.iter().map(String::as_bytes).collect();
            let files = [earlier.as_path(), &computed];
            parquet::splice(files, &out, compute::KEY, |[link_id, _]| !all_but.contains(link_id))?
        }
    };
    fs::remove_file(&computed)?;
    let took = started.elapsed();
    anyhow::ensure!(rows == u64::from(links), "{rows} rows of {links} links");
    fs::rename(out, earlier)?;
    Ok(took)
}

/// Links here and there, and their rows of the history tables.
struct Changed {
    links: Vec<String>,
    rows: Vec<(&'static Table, Vec<RecordBatch>)>,
}

impl Changed {
    fn of(folder: &Path, count: u32) -> anyhow::Result<Self> {
        let connection = Connection::open_in_memory()?;
        let file = |table: &str| file(folder, table).display().to_string();
        let some = format!("SELECT link_id FROM '{}' ORDER BY md5(link_id) LIMIT {count}", file("links"));
        let mut select = connection.prepare(&some)?;
        let links = select.query_map([], |row| row.get(0))?.collect::<duckdb::Result<Vec<String>>>()?;
        let histories =
            SOURCES.iter().map(|name| schema::get().table(name)).filter(|table| table.name.ends_with("_history"));
        let rows = histories.map(|table| {
            let sql = format!("SELECT * FROM '{}' WHERE link_id IN ({some}) ORDER BY link_id", file(&table.name));
            let mut rows = connection.prepare(&sql)?;
            let batches =
                rows.stream_arrow([])?.map(|batch| as_published(&batch?, table)).collect::<anyhow::Result<_>>()?;
            Ok((table, batches))
        });
        let rows = rows.collect::<anyhow::Result<_>>()?;
        Ok(Self { links, rows })
    }

    /// Writes the rows, as they do while a snapshot is staged.
    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        for (table, batches) in &self.rows {
            let path = self.file(folder, &table.name).context("it has a file")?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            let mut file = TableWriter::create(&path, Kit::new(table)?)?;
            batches.iter().try_for_each(|batch| file.write(batch))?;
            file.finish()?;
        }
        Ok(())
    }

    fn file(&self, folder: &Path, table: &str) -> Option<PathBuf> {
        let is_ours = self.rows.iter().any(|(ours, _)| ours.name == table);
        is_ours.then(|| file(&folder.join("changed"), table))
    }
}

/// The same formulas as one statement: how long it takes.
fn statement(folder: &Path) -> anyhow::Result<Duration> {
    let connection = Connection::open_in_memory()?;
    let temporary = folder.join("tmp");
    connection.execute_batch(&format!(
        "SET memory_limit = '{MEMORY_OF_THE_STATEMENT}'; SET temp_directory = '{}'; SET threads = 4",
        temporary.display()
    ))?;
    for table in SOURCES {
        let file = file(folder, table);
        connection.execute_batch(&format!("CREATE VIEW {table} AS SELECT * FROM '{}'", file.display()))?;
    }
    catalog::create_macros(&connection, &Reference::compiled())?;
    let text = statement_text()?;
    let run = the_run();
    let started = Instant::now();
    connection.execute_batch(&format!(
        "CREATE TABLE result AS WITH {}",
        text.replace("CAST(as_of AS DATE)", &format!("DATE '{}'", run.as_of))
            .replace("CAST(known AS TIMESTAMPTZ)", &format!("make_timestamptz({}::BIGINT)", run.known_at.as_micros()))
            .replace("lag_months AS SMALLINT", "1 AS SMALLINT")
            .replace("- lag_months", "- 1")
    ))?;
    Ok(started.elapsed())
}

fn statement_text() -> anyhow::Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/features/sql/credit_features");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let row = files.pop().context("the last file is the row")?;
    let mut text = String::new();
    for (number, file) in files.iter().enumerate() {
        write!(text, "{}{}", if number == 0 { "" } else { "," }, fs::read_to_string(file)?)?;
    }
    write!(text, "{}", fs::read_to_string(row)?)?;
    let plain = text
        .replace("AS MATERIALIZED", "AS NOT MATERIALIZED")
        .replace("CAST(row_number() OVER () AS INTEGER) AS job_no", "e.employment_key AS job_no")
        .replace("CAST(row_number() OVER (ORDER BY link_id) AS INTEGER) AS link_no", "link_id AS link_no");
    // Numbers that are given anew wherever a step is named would not be the same.
    anyhow::ensure!(
        !plain.contains("AS INTEGER) AS job_no") && !plain.contains("AS INTEGER) AS link_no"),
        "the steps number rows otherwise"
    );
    Ok(plain)
}

/// The highest resident size of this process since it was last forgotten, in MiB.
fn high_water() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel tells it")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}
