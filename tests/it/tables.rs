//! Tables as their readers see them, in one form for every reader: text, exact, comparable.
//!
//! Decimals keep their digits, dates are `YYYY-MM-DD`, instants RFC 3339 with six digits and `Z`, lists are JSON, and
//! NULL is `None`. No value passes through a float.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use vinculo::clock::Timestamp;

/// A row: its values by column name.
pub(crate) type Row = BTreeMap<String, Option<String>>;

/// Rows by table name.
pub(crate) type Tables = BTreeMap<String, Vec<Row>>;

/// Tables about people, in both sinks.
pub(crate) const ALL: [&str; 11] = [
    "employments",
    "employments_history",
    "link_snapshots",
    "links",
    "occupations",
    "occupations_history",
    "owners",
    "owners_history",
    "rejected_records",
    "salaries",
    "salaries_history",
];

/// Columns that tell when this program asked, and so differ between two runs.
pub(crate) const CLOCKS: [&str; 5] =
    ["last_fetched_at", "last_webhook_at", "next_refresh_at", "fetched_at", "is_stale"];

/// The tables in `vinculo.duckdb` of the lake at `lake`.
pub(crate) fn from_duckdb(lake: &Path) -> Tables {
    let connection = connect(&lake.join("vinculo.duckdb"));
    ALL.into_iter().map(|table| (table.to_owned(), query(&connection, table))).collect()
}

/// A connection as an analyst has it: read-only.
pub(crate) fn connect(file: &Path) -> duckdb::Connection {
    let config = duckdb::Config::default().access_mode(duckdb::AccessMode::ReadOnly).unwrap();
    duckdb::Connection::open_with_flags(file, config).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All rows of `table`.
pub(crate) fn query(connection: &duckdb::Connection, table: &str) -> Vec<Row> {
    let mut describe =
        connection.prepare("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?").unwrap();
    let columns: Vec<(String, String)> =
        describe.query_map([table], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    assert!(!columns.is_empty(), "there is no table {table}");
    let exact: Vec<String> = columns
        .iter()
        .map(|(name, kind)| match kind.as_str() {
            "TIMESTAMP WITH TIME ZONE" => {
                format!("strftime(make_timestamp(epoch_us({name})), '%Y-%m-%dT%H:%M:%S.%fZ')")
            }
            "VARCHAR[]" => format!("'[\"' || array_to_string({name}, '\",\"') || '\"]'"),
            _ => format!("CAST({name} AS VARCHAR)"),
        })
        .collect();
    let mut select = connection.prepare(&format!("SELECT {} FROM {table}", exact.join(", "))).unwrap();
    let rows = select
        .query_map([], |row| {
            columns
                .iter()
                .enumerate()
                .map(|(at, (name, _))| Ok((name.clone(), row.get(at)?)))
                .collect::<duckdb::Result<Row>>()
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// The rows that `sql` gives.
pub(crate) fn query_sql(connection: &duckdb::Connection, sql: &str) -> Vec<Row> {
    connection.execute_batch(&format!("CREATE OR REPLACE TEMP TABLE answer AS {sql}")).unwrap();
    query(connection, "answer")
}

/// The tables in the Parquet files below `current` of the lake at `lake`, resolved once.
pub(crate) fn from_parquet(lake: &Path) -> Tables {
    let snapshot = std::fs::canonicalize(lake.join("current")).unwrap();
    ALL.into_iter()
        .map(|table| {
            let files = parquet_files(&snapshot.join(table));
            assert!(!files.is_empty(), "{table} has no files");
            (table.to_owned(), files.iter().flat_map(|file| read_parquet(file)).collect())
        })
        .collect()
}

/// The Parquet files below `folder`.
pub(crate) fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(parquet_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    files.sort();
    files
}

pub(crate) fn read_parquet(file: &Path) -> Vec<Row> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap().build().unwrap();
    reader.flat_map(|batch| rows_of(&batch.unwrap())).collect()
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let schema = batch.schema();
    let columns: Vec<(String, Vec<Option<String>>)> = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| (field.name().clone(), texts(column)))
        .collect();
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|(name, values)| (name.clone(), values[row].clone())).collect())
        .collect()
}

fn texts(column: &dyn Array) -> Vec<Option<String>> {
    let each = |text: &dyn Fn(usize) -> String| {
        (0..column.len()).map(|at| (!column.is_null(at)).then(|| text(at))).collect::<Vec<_>>()
    };
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => {
            assert_eq!(&**zone, "UTC");
            let instants = column.as_primitive::<TimestampMicrosecondType>();
            each(&|at| Timestamp::from_micros(instants.value(at)).to_string())
        }
        DataType::Decimal128(19, 4) => {
            let amounts = column.as_primitive::<arrow::datatypes::Decimal128Type>();
            each(&|at| amounts.value_as_string(at))
        }
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            each(&|at| serde_json::to_string(&texts(&lists.value(at))).unwrap())
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => panic!("a float in a table"),
        _ => {
            let cast = cast(column, &DataType::Utf8).unwrap();
            let strings = cast.as_string::<i32>();
            each(&|at| strings.value(at).to_owned())
        }
    }
}

/// The tables of the simulator's truth.
pub(crate) fn from_truth(truth: &Value) -> Tables {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let row = |row: &Value| row.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))).collect();
    let tables = truth.as_object().unwrap().iter();
    tables.map(|(name, rows)| (name.clone(), rows.as_array().unwrap().iter().map(row).collect())).collect()
}

/// Fails unless `found` holds exactly the rows of the truth in every table that it speaks of, in every column that it
/// names but `except`.
pub(crate) fn assert_true(found: &Tables, truth: &Tables, except: &[&str]) {
    if let Some(difference) = difference(found, truth, except) {
        panic!("{difference}");
    }
}

/// The first differences from the truth, if there are any.
pub(crate) fn difference(found: &Tables, truth: &Tables, except: &[&str]) -> Option<String> {
    truth.iter().find_map(|(table, expected)| {
        let mut rows = found[table].clone();
        if table == "link_snapshots" {
            // The truth speaks of the newest answer of each.
            rows.sort_by_key(|row| row["fetched_at"].clone());
            let newest: BTreeMap<_, _> =
                rows.into_iter().map(|row| ((row["link_id"].clone(), row["resource"].clone()), row)).collect();
            rows = newest.into_values().collect();
        }
        let names: Vec<&String> = expected
            .first()
            .map(|row| row.keys().filter(|name| !except.contains(&name.as_str())).collect())
            .unwrap_or_default();
        let narrowed = |rows: &[Row]| {
            let mut rows: Vec<Row> = rows
                .iter()
                .map(|row| {
                    let value =
                        |name: &String| row.get(name).unwrap_or_else(|| panic!("{table} has no column {name}")).clone();
                    names.iter().map(|name| ((*name).clone(), canonical(name, value(name)))).collect()
                })
                .collect();
            rows.sort();
            rows
        };
        rows_differ(table, &narrowed(&rows), &narrowed(expected))
    })
}

/// The same JSON is the same, whatever its blanks and the order of its fields.
fn canonical(name: &str, value: Option<String>) -> Option<String> {
    match value {
        Some(text) if name == "extra" => Some(serde_json::from_str::<Value>(&text).unwrap().to_string()),
        other => other,
    }
}

/// Fails unless both hold the same rows in any order, leaving `except` out.
pub(crate) fn assert_same(found: &Tables, expected: &Tables, except: &[&str]) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (table, rows) in found {
        if let Some(difference) = rows_differ(table, &without(rows, except), &without(&expected[table], except)) {
            panic!("{difference}");
        }
    }
}

fn without(rows: &[Row], except: &[&str]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    for row in &mut rows {
        row.retain(|name, _| !except.contains(&name.as_str()));
    }
    rows.sort();
    rows
}

fn rows_differ(table: &str, found: &[Row], expected: &[Row]) -> Option<String> {
    if found == expected {
        return None;
    }
    let only = |rows: &[Row], others: &[Row]| -> Vec<Row> {
        rows.iter().filter(|row| others.binary_search(row).is_err()).take(3).cloned().collect()
    };
    let (surplus, missing) = (only(found, expected), only(expected, found));
    Some(format!(
        "{table}: {} rows, expected {}\nnot expected: {surplus:#?}\nmissing: {missing:#?}",
        found.len(),
        expected.len()
    ))
}

/// The tables whose rows have versions, with their keys.
pub(crate) const VERSIONED: [(&str, &[&str]); 4] = [
    ("employments", &["employment_key"]),
    ("occupations", &["employment_key", "start_date", "name", "seq"]),
    ("salaries", &["employment_key", "month_text", "salary_type", "seq"]),
    ("owners", &["link_id", "owner_id"]),
];

/// Fails when two rows of a table share its key: the tables' own promise.
pub(crate) fn assert_keys_are_unique(tables: &Tables) {
    let keys: [(&str, &[&str]); 2] =
        [("links", &["link_id"]), ("link_snapshots", &["link_id", "resource", "fetched_at"])];
    for (table, key) in keys.into_iter().chain(VERSIONED) {
        let mut seen = std::collections::BTreeSet::new();
        for row in &tables[table] {
            let values: Vec<_> = key.iter().map(|name| row[*name].clone()).collect();
            assert!(seen.insert(values.clone()), "{table} holds {values:?} twice");
        }
    }
}

/// Columns that tell of the latest sighting in a current table, and of a version's first one in its history.
const SIGHTINGS: [&str; 5] = ["employment_id", "occupation_count", "salary_count", "created_at", "collected_at"];

/// Fails unless each table's history holds the table itself as its open ends, and versions of one key follow one
/// another without a gap or an overlap, the last one open.
pub(crate) fn assert_histories_agree(tables: &Tables) {
    for (table, key) in VERSIONED {
        let history = &tables[&format!("{table}_history")];
        let mut by_key: BTreeMap<Vec<Option<String>>, Vec<&Row>> = BTreeMap::new();
        for row in history {
            by_key.entry(key.iter().map(|name| row[*name].clone()).collect()).or_default().push(row);
        }
        for (key, versions) in &mut by_key {
            versions.sort_by_key(|row| row["known_from"].clone());
            for pair in versions.windows(2) {
                assert!(pair[0]["known_from"] < pair[1]["known_from"], "{table} {key:?} has a version twice");
                assert_eq!(pair[0]["known_to"], pair[1]["known_from"], "{table} {key:?}");
            }
            assert_eq!(versions[versions.len() - 1]["known_to"], None, "{table} {key:?}");
        }
        let open =
            history.iter().filter(|row| row["known_to"].is_none() && row["is_deleted"].as_deref() == Some("false"));
        let open: Vec<Row> = open.cloned().collect();
        let except: Vec<&str> = SIGHTINGS.into_iter().chain(["known_to", "is_deleted"]).collect();
        if let Some(difference) = rows_differ(table, &without(&open, &except), &without(&tables[table], &except)) {
            panic!("the open ends of its history are not {difference}");
        }
    }
}

/// Rows of one table as a person reads them, sorted, without the columns of this program's clock.
pub(crate) fn shown(tables: &Tables, names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, "{name}: {} rows", tables[*name].len());
        for row in without(&tables[*name], &CLOCKS) {
            let values: Vec<String> =
                row.iter().map(|(column, value)| format!("{column}={}", value.as_deref().unwrap_or("NULL"))).collect();
            let _ = writeln!(text, "  {}", values.join("\n    "));
        }
    }
    text
}
