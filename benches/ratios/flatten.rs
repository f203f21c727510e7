//! Flattening against DuckDB on the same file, and against nothing but parsing.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use vinculo::clock::Timestamp;
use vinculo::columns::Columns;
use vinculo::flatten::{Flattener, Plan, RecordFacts};
use vinculo::resources::employments;
use vinculo::schema;
use vinculo::simulate;
use vinculo::sinks::parquet::{Kit, TableWriter};

use crate::measure::{Cost, aim, cost};

/// Bytes of the input.
const INPUT: u64 = 200_000_000;
/// Rounds in which each is measured once, one after the other, so that all see the same machine; of each the best
/// counts, because everything else on it only ever adds.
const ROUNDS: usize = 6;
/// Rows that wait for the Parquet writer.
const BATCH: usize = 8_192;

pub(crate) fn run() -> anyhow::Result<bool> {
    let input = input()?;
    let text = fs::read_to_string(&input)?;
    let folder = tempfile::tempdir()?;
    // The state knows the link and the key of each record.
    let ids: Vec<(String, String)> = (0..lines(&text).count())
        .map(|number| (format!("{:08x}-0000-4000-8000-000000000000", number / 3), format!("{number:032x}")))
        .collect();

    let mut salaries = 0;
    let mut best: Option<[Cost; 4]> = None;
    for _ in 0..ROUNDS {
        let out = folder.path().join("ours");
        let _ = fs::remove_dir_all(&out);
        let parsing = cost(|| parse(&text))?.1;
        let flattening = cost(|| flatten(|each| lines(&text).try_for_each(each), &ids, None))?.1;
        let (rows, writing) = cost(|| flatten(|each| read_lines(&input, each), &ids, Some(&out)))?;
        salaries = rows;
        let round = [parsing, flattening, writing, duckdb(&input, &folder.path().join("duckdb"))?];
        best = Some(best.map_or(round, |best| std::array::from_fn(|of| best[of].min(round[of]))));
    }
    let [parsing, flattening, writing, theirs] = best.context("there were rounds")?;
    let per_second = |cost: Cost| salaries as f64 / cost.cpu.as_secs_f64();
    let speed = |cost: Cost| text.len() as f64 / cost.cpu.as_secs_f64() / 1e6;
    println!("  {} MB, {salaries} salary rows, one thread", text.len() / 1_000_000);
    println!("  parse only: {:.0} MB/s; flatten: {:.0} MB/s", speed(parsing), speed(flattening));
    println!("  flatten + Parquet: {:.0} salary rows per CPU-second", per_second(writing));
    let mut reached = aim("flatten alone / parse only", parsing.cpu.as_secs_f64() / flattening.cpu.as_secs_f64(), 0.5);

    println!("  DuckDB: {:.0} salary rows per CPU-second", per_second(theirs));
    reached &= aim("flatten + Parquet / DuckDB", theirs.cpu.as_secs_f64() / writing.cpu.as_secs_f64(), 2.0);
    Ok(reached)
}

/// The input, made once.
fn input() -> anyhow::Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("employments-{INPUT}.ndjson"));
    if !path.exists() {
        let partial = path.with_extension("partial");
        simulate::write_ndjson(&simulate::Settings::default(), BufWriter::new(File::create(&partial)?), INPUT)?;
        fs::rename(partial, &path)?;
    }
    Ok(path)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', text.as_bytes()).map(move |end| &text[std::mem::replace(&mut start, end + 1)..end])
}

/// Gives each line of the file, read bit by bit, as DuckDB reads it too.
fn read_lines(path: &Path, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = String::new();
    while file.read_line(&mut line)? > 0 {
        each(line.trim_end())?;
        line.clear();
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<usize> {
    let mut flattener = Flattener::new(Plan::for_resource(&employments::RESOURCE), None);
    lines(text).try_for_each(|line| flattener.parse(line))?;
    Ok(text.len())
}

/// Flattens every line that `each_line` gives, a record of the link and key in `ids` each, and gives the number of
/// salary rows; writes the tables into `out`, if one is given.
fn flatten(
    each_line: impl FnOnce(&mut dyn FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()>,
    ids: &[(String, String)],
    out: Option<&Path>,
) -> anyhow::Result<u64> {
    let schema = schema::get();
    let tables: Vec<_> = schema.records[0].tables.iter().map(|&table| &schema.tables[table]).collect();
    let mut flattener = Flattener::new(Plan::for_resource(&employments::RESOURCE), None);
    let mut columns: Vec<Columns> = flattener.columns();
    let mut writers = match out {
        Some(out) => tables
            .iter()
            .map(|table| Ok(Some(TableWriter::create(&out.join(format!("{}.parquet", table.name)), Kit::new(table)?)?)))
            .collect::<anyhow::Result<Vec<_>>>()?,
        None => tables.iter().map(|_| None).collect(),
    };
    let mut salaries = 0;
    let mut write = |columns: &mut [Columns], at_least: usize| -> anyhow::Result<()> {
        for ((columns, writer), table) in columns.iter_mut().zip(&mut writers).zip(&tables) {
            if columns.len() < at_least {
                continue;
            }
            let batch = columns.take(&table.batch)?;
            if table.name == "salaries" {
                salaries += batch.num_rows() as u64;
            }
            if let Some(writer) = writer {
                writer.write(&batch)?;
            }
        }
        Ok(())
    };
    let known_from = Timestamp::from_micros(1_795_176_000_000_000);
    let mut ids = ids.iter();
    each_line(&mut |line| {
        let (link_id, key) = ids.next().context("there are as many ids as lines")?;
        let facts = RecordFacts {
            link_id,
            record_key: key,
            record_id: link_id,
            created_at: Some(known_from),
            collected_at: Some(known_from),
            known_from,
        };
        flattener.flatten(line, &facts, &mut columns)?;
        write(&mut columns, BATCH)
    })?;
    write(&mut columns, 0)?;
    for writer in writers.into_iter().flatten() {
        writer.finish()?;
    }
    Ok(salaries)
}

fn duckdb(input: &Path, out: &Path) -> anyhow::Result<Cost> {
    let python =
        std::env::var_os("VINCULO_BENCH_PYTHON").context("VINCULO_BENCH_PYTHON is not set: use `make bench`")?;
    fs::create_dir_all(out)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/duckdb_flatten.py");
    let output = Command::new(python).arg(script).arg(input).arg(out).args(["--threads", "1"]).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let cpu = said["cpu_seconds"].as_f64().context("a figure is missing")?;
    Ok(Cost { cpu: Duration::from_secs_f64(cpu) })
}
