//! `vinculo sql`: a question to the published tables.
//!
//! *Promises*: it reads one snapshot, also while the daemon publishes others; values are exact, decimals included; and the
//! SQL reaches nothing but those tables: no other file, no network, no extension; and an error holds no value of the rows.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use duckdb::Connection;

use self::json::Values;
use super::table::Table;
use super::{Exit, Global};
use crate::config::Needs;
use crate::database;

mod failure;
mod json;

/// Rows that a table for people shows at most; JSON and CSV give every row.
const SHOWN_ROWS: usize = 10_000;

/// What `sql` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The question, such as "SELECT count(*) FROM salaries"
    // A question may begin with a comment.
    #[arg(value_name = "SQL", allow_hyphen_values = true)]
    pub sql: String,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let form = if args.csv {
        Form::Csv
    } else if global.json {
        Form::Json
    } else {
        Form::Table
    };
    query(&config.lake.path, &args.sql, form, &mut io::stdout().lock())?;
    Ok(Exit::Done)
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// One object a line; decimals, dates and timestamps as text, lists as arrays, structs and maps as objects.
    Json,
    /// RFC 4180, with a header; NULL is an empty field, and an empty text is quoted.
    Csv,
}

/// Asks the current snapshot of the lake at `lake`, and prints the rows to `out`.
///
/// # Errors
/// DuckDB's, those of `out`, and when nothing is published.
pub fn query(lake: &Path, sql: &str, form: Form, out: &mut impl Write) -> anyhow::Result<()> {
    if sql.trim().is_empty() {
        bail!("there is no question: give one such as \"SELECT * FROM links LIMIT 5\"");
    }
    ask(&open(lake)?, sql, form, out)
}

/// Asks `connection`, and prints the rows to `out`.
///
/// # Errors
/// DuckDB's, and those of `out`.
pub fn ask(connection: &Connection, sql: &str, form: Form, out: &mut impl Write) -> anyhow::Result<()> {
    let told = |error| failure::told(error, sql, connection);
    let mut statement = connection.prepare(sql).map_err(told)?;
    let mut batches = statement.stream_arrow([]).map_err(told)?;
    let schema = batches.get_schema();
    let mut printer =
        Printer::new(form, schema.fields().iter().map(|field| (field.name().clone(), field.data_type().is_numeric())));
    printer.begin(out)?;
    for batch in &mut batches {
        printer.print(&batch.map_err(told)?, out)?;
    }
    printer.end(out)
}

/// The published database.
fn open(lake: &Path) -> anyhow::Result<Connection> {
    let path = database::published(lake)?;
    database::open(&path)
        .with_context(|| format!("{} cannot be read; `vinculo rebuild` writes it anew", path.display()))
}

struct Printer {
    form: Form,
    names: Vec<String>,
    table: Table,
    left_out: usize,
}

impl Printer {
    fn new(form: Form, columns: impl Iterator<Item = (String, bool)>) -> Self {
        let columns: Vec<_> = columns.collect();
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &columns {
            let mut unique = name.clone();
            let mut again = 1;
            while names.contains(&unique) {
                unique = format!("{name}_{again}");
                again += 1;
            }
            names.push(unique);
        }
        Self { form, names, table: Table::new(columns), left_out: 0 }
    }

    fn begin(&self, out: &mut impl Write) -> io::Result<()> {
        match self.form {
            Form::Csv => writeln!(out, "{}", self.names.iter().map(|name| csv(name)).collect::<Vec<_>>().join(",")),
            Form::Table | Form::Json => Ok(()),
        }
    }

    fn print(&mut self, batch: &RecordBatch, out: &mut impl Write) -> anyhow::Result<()> {
        let columns = batch.columns().iter().map(printable).collect::<Result<Vec<ArrayRef>, _>>()?;
        let options = FormatOptions::new().with_types_info(false).with_null("NULL");
        if self.form == Form::Json {
            return self.print_json(&columns, batch.num_rows(), &options, out);
        }
        let cells =
            columns.iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<Result<Vec<_>, _>>()?;
        // Of a NULL without a type, too.
        let nulls: Vec<_> = columns.iter().map(Array::logical_nulls).collect();
        for row in 0..batch.num_rows() {
            let cell = |at: usize| {
                (!nulls[at].as_ref().is_some_and(|nulls| nulls.is_null(row)))
                    .then(|| cells[at].value(row).try_to_string())
                    .transpose()
            };
            let texts = (0..columns.len()).map(cell).collect::<Result<Vec<_>, _>>()?;
            if self.form == Form::Csv {
                let fields = texts.iter().map(|text| text.as_deref().map_or_else(String::new, csv));
                writeln!(out, "{}", fields.collect::<Vec<_>>().join(","))?;
            } else if self.table.len() < SHOWN_ROWS {
                self.table.push(texts);
            } else {
                self.left_out += 1;
            }
        }
        Ok(())
    }

    fn print_json(
        &self,
        columns: &[ArrayRef],
        rows: usize,
        options: &FormatOptions<'_>,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let columns = columns.iter().map(|column| Values::of(column, options)).collect::<Result<Vec<_>, _>>()?;
        for row in 0..rows {
            let mut line = String::from("{");
            for (at, (name, values)) in self.names.iter().zip(&columns).enumerate() {
                if at > 0 {
                    line.push(',');
                }
                json::push_name(name, &mut line);
                values.write(row, &mut line)?;
            }
            writeln!(out, "{line}}}")?;
        }
        Ok(())
    }

    fn end(self, out: &mut impl Write) -> anyhow::Result<()> {
        if self.form == Form::Table {
            self.table.write(out)?;
            if self.left_out > 0 {
                writeln!(out, "… and {} rows more: --csv or --json print them all", self.left_out)?;
            }
        }
        Ok(out.flush()?)
    }
}

/// Timestamps with a zone as instants in UTC, also inside of others: arrow cannot print a named zone here.
fn printable(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    cast(column, &in_utc(column.data_type()))
}

fn in_utc(data_type: &DataType) -> DataType {
    let of = |field: &FieldRef| Arc::new(Field::clone(field).with_data_type(in_utc(field.data_type())));
    match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        DataType::List(field) => DataType::List(of(field)),
        DataType::LargeList(field) => DataType::LargeList(of(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(of(field), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        DataType::Map(field, is_sorted) => DataType::Map(of(field), *is_sorted),
        other => other.clone(),
    }
}

fn csv(text: &str) -> String {
    if text.is_empty() || text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn lake() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshots/000001");
        std::fs::create_dir_all(&snapshot).unwrap();
        let connection = Connection::open(snapshot.join("vinculo.duckdb")).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE salaries AS SELECT * FROM (VALUES \
                 ('a', 999999999999999.99::DECIMAL(19,4), TIMESTAMPTZ '2026-03-02 12:00:00.000001+00', DATE '2026-03-01', true), \
                 ('b \"c\", d', 1033.09, NULL, NULL, NULL)) t(name, amount, known_from, reference_month, is_open)",
            )
            .unwrap();
        drop(connection);
        symlink("snapshots/000001", folder.path().join("current")).unwrap();
        symlink("current/vinculo.duckdb", folder.path().join("vinculo.duckdb")).unwrap();
        folder
    }

    fn ask(lake: &Path, sql: &str, form: Form) -> anyhow::Result<String> {
        let mut out = Vec::new();
        query(lake, sql, form, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_come_out_exactly_in_every_form() {
        let lake = lake();
        let rows = "SELECT *, 1 AS n, 1 AS n, 0.5::DOUBLE AS half, '' AS empty FROM salaries ORDER BY name";
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Csv).unwrap(), @r#"
name,amount,known_from,reference_month,is_open,n,n_1,half,empty
a,999999999999999.9900,2026-03-02T12:00:00.000001Z,2026-03-01,true,1,1,0.5,""
"b ""c"", d",1033.0900,,,,1,1,0.5,""
"#);
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Json).unwrap(), @r#"
{"name":"a","amount":"999999999999999.9900","known_from":"2026-03-02T12:00:00.000001Z","reference_month":"2026-03-01","is_open":true,"n":1,"n_1":1,"half":0.5,"empty":""}
{"name":"b \"c\", d","amount":"1033.0900","known_from":null,"reference_month":null,"is_open":null,"n":1,"n_1":1,"half":0.5,"empty":""}
"#);
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Table).unwrap(), @r#"
name                    amount  known_from                   reference_month  is_open  n  n  half  empty
────────  ────────────────────  ───────────────────────────  ───────────────  ───────  ─  ─  ────  ─────
a         999999999999999.9900  2026-03-02T12:00:00.000001Z  2026-03-01       true     1  1   0.5
b "c", d             1033.0900  NULL                         NULL             NULL     1  1   0.5
"#);
    }

    #[test]
    fn nulls_without_a_type_and_timestamps_inside_of_others_are_printed_too() {
        let lake = lake();
        let rows = "SELECT NULL AS nothing, list(known_from ORDER BY name) AS all, {'at': max(known_from)} AS last FROM salaries";
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Csv).unwrap(), @r#"
nothing,all,last
,"[2026-03-02T12:00:00.000001Z, NULL]",{at: 2026-03-02T12:00:00.000001Z}
"#);
        insta::assert_snapshot!(ask(lake.path(), "SELECT NULL AS nothing", Form::Json).unwrap(), @r#"{"nothing":null}"#);
        let wrong = ask(lake.path(), "SELECT 1 +", Form::Csv).unwrap_err();
        assert!(!format!("{wrong:#}").contains("Unknown error code"), "{wrong:#}");
        assert!(ask(lake.path(), " ", Form::Csv).unwrap_err().to_string().contains("there is no question"));
    }

    #[test]
    fn lists_structs_and_maps_are_json_with_items_as_they_are_printed_elsewhere() {
        let lake = lake();
        let rows = "SELECT ['A', NULL, 'b \"c\"'] AS flags, list(amount ORDER BY name) AS amounts, \
            list(known_from ORDER BY name) AS times, {'n': 1, 'half': 0.5::DOUBLE, 'all': [true]} AS s, \
            MAP {'k': 1.50::DECIMAL(9,2), 'l': NULL} AS m, MAP {1: [2]} AS numbers, row(1, 'x') AS pair, \
            []::VARCHAR[] AS empty, NULL::VARCHAR[] AS none, [[1], []] AS nested, [1, 2]::INT[2] AS two, \
            'a'::ENUM('a') AS e, ['a'::ENUM('a')] AS es FROM salaries";
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Json).unwrap(), @r#"
{"flags":["A",null,"b \"c\""],"amounts":["999999999999999.9900","1033.0900"],"times":["2026-03-02T12:00:00.000001Z",null],"s":{"n":1,"half":0.5,"all":[true]},"m":{"k":"1.50","l":null},"numbers":{"1":[2]},"pair":{"element1":1,"element2":"x"},"empty":[],"none":null,"nested":[[1],[]],"two":[1,2],"e":"a","es":["a"]}
"#);
        // Of several rows, each its own items.
        let rows = "SELECT [name] AS names, [1, 2, reference_month] AS mixed, {'n': name} AS s FROM \
            (SELECT name, CASE WHEN is_open THEN 3 END AS reference_month FROM salaries) ORDER BY name";
        insta::assert_snapshot!(ask(lake.path(), rows, Form::Json).unwrap(), @r#"
{"names":["a"],"mixed":[1,2,3],"s":{"n":"a"}}
{"names":["b \"c\", d"],"mixed":[1,2,null],"s":{"n":"b \"c\", d"}}
"#);
    }

    #[test]
    fn the_question_reaches_nothing_but_the_tables() {
        let lake = lake();
        for sql in [
            "SELECT * FROM read_text('/etc/passwd')",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM glob('/etc/*')",
            "COPY salaries TO '/tmp/vinculo-copied.csv'",
            "ATTACH '/tmp/vinculo-attached.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET temp_directory = '/tmp'",
            "INSERT INTO salaries SELECT * FROM salaries",
            "SELECT getenv('HOME')",
        ] {
            assert!(ask(lake.path(), sql, Form::Csv).is_err(), "{sql}");
        }
        assert!(!Path::new("/tmp/vinculo-copied.csv").exists() && !Path::new("/tmp/vinculo-attached.db").exists());
    }

    #[test]
    fn wrong_sql_and_an_empty_lake_are_told() {
        let lake = lake();
        assert!(ask(lake.path(), "SELECT amont FROM salaries", Form::Csv).unwrap_err().to_string().contains("amount"));
        let empty = tempfile::tempdir().unwrap();
        assert!(ask(empty.path(), "SELECT 1", Form::Csv).unwrap_err().to_string().contains("nothing is published"));
    }

    #[test]
    fn a_publish_meanwhile_takes_nothing_away() {
        let lake = lake();
        let reader = open(lake.path()).unwrap();
        std::fs::remove_file(lake.path().join("current")).unwrap();
        assert!(ask(lake.path(), "SELECT 1", Form::Csv).is_err());
        let count: i64 = reader.query_row("SELECT count(*) FROM salaries", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 2);
    }
}
