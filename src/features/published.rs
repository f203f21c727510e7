//! Rows of `credit_features`, as JSON that keeps every value exactly.
//!
//! *Takes* a published `vinculo.duckdb`. *Gives* its rows and their number. *Not here*: where they come from, which
//! `explain.rs` says.

use std::path::Path;

use chrono::NaiveDate;
use duckdb::Connection;
use serde_json::{Map, Value};

use super::dictionary::{self, Column};
use super::runs::Mode;
use crate::database::{self, quoted};

/// The published row of a link, as JSON; `None` when there is none.
///
/// # Errors
/// DuckDB's.
pub fn row_of(file: &Path, link_id: &str, as_of: NaiveDate, mode: Mode) -> duckdb::Result<Option<Map<String, Value>>> {
    let connection = database::open(file)?;
    let condition = format!("link_id = {} AND as_of_date = DATE '{as_of}' AND pit_mode = '{mode}'", quoted(link_id));
    Ok(rows(&connection, &exact("credit_features", &condition))?.pop())
}

/// How many rows the published database has for a date.
///
/// # Errors
/// When the file cannot be read.
pub fn count(file: &Path, as_of: NaiveDate) -> duckdb::Result<u64> {
    let sql = format!("SELECT count(*) FROM credit_features WHERE as_of_date = DATE '{as_of}'");
    database::open(file)?.query_row(&sql, [], |row| row.get(0))
}

/// A value without JSON's quotes.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Selects every column of `credit_features` in a form that JSON keeps exactly.
pub(super) fn exact(from: &str, condition: &str) -> String {
    let columns =
        dictionary::relation("credit_features").columns.iter().map(|Column { name, kind, .. }| match kind.as_str() {
            "TIMESTAMP WITH TIME ZONE" => {
                format!("strftime(make_timestamp(epoch_us({name})), '%Y-%m-%dT%H:%M:%S.%fZ') AS {name}")
            }
            kind if kind.starts_with("DECIMAL") => format!("CAST({name} AS VARCHAR) AS {name}"),
            _ => name.clone(),
        });
    format!("SELECT {} FROM {from} WHERE {condition}", columns.collect::<Vec<_>>().join(", "))
}

/// The rows of a question as JSON objects.
pub(super) fn rows(connection: &Connection, sql: &str) -> duckdb::Result<Vec<Map<String, Value>>> {
    let mut statement = connection.prepare(&format!("SELECT CAST(to_json(r) AS VARCHAR) FROM ({sql}) AS r"))?;
    let texts = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<duckdb::Result<Vec<_>>>()?;
    // What DuckDB calls JSON is an object for a row.
    Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
}
