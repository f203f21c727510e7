//! What every `vinculo.duckdb` holds besides the tables of records: macros, reference tables, views, and their
//! comments.
//!
//! *Takes* a connection whose default catalog is the file, with the tables of records in it. *Promises* SQL that every
//! DuckDB from 1.1 on understands, and a comment on everything.

use std::fmt::Write as _;

use duckdb::Connection;

use super::dictionary::{self, Kind, Relation};
use crate::database::quoted;
use crate::reference::Reference;

/// Scalar macros, each after those that it is made of.
const MACROS: [&str; 9] = [
    include_str!("sql/macros/month_number.sql"),
    include_str!("sql/macros/month_date.sql"),
    include_str!("sql/macros/rounded_units.sql"),
    include_str!("sql/macros/rounded_ratio.sql"),
    include_str!("sql/macros/months_of_days.sql"),
    include_str!("sql/macros/brl.sql"),
    include_str!("sql/macros/middle_sum.sql"),
    include_str!("sql/macros/inss_in_bracket.sql"),
    include_str!("sql/macros/inss_expected.sql"),
];

/// The steps of `credit_features`, each of which may use those before it.
const STEPS: [&str; 10] = [
    include_str!("sql/credit_features/01_asked.sql"),
    include_str!("sql/credit_features/02_jobs.sql"),
    include_str!("sql/credit_features/03_job_months.sql"),
    include_str!("sql/credit_features/04_job_states.sql"),
    include_str!("sql/credit_features/05_careers.sql"),
    include_str!("sql/credit_features/06_coverage.sql"),
    include_str!("sql/credit_features/07_main_job.sql"),
    include_str!("sql/credit_features/08_person_months.sql"),
    include_str!("sql/credit_features/09_incomes.sql"),
    include_str!("sql/credit_features/10_contributions.sql"),
];

/// The row that the steps end in.
const ROW: &str = include_str!("sql/credit_features/11_row.sql");

const VIEWS: [&str; 3] = [
    include_str!("sql/views/current_jobs.sql"),
    include_str!("sql/views/monthly_income.sql"),
    include_str!("sql/views/link_health.sql"),
];

const MACRO_COMMENT: &str = "One explained row for each link as of a date: credit_features(as_of DATE, known TIMESTAMPTZ, \
     lag_months INTEGER). strict, for decisions: known = the date at 23:59:59.999999 UTC. The columns are those of the table \
     credit_features";

/// A macro of `vinculo.duckdb`, as the dictionary shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Macro {
    /// Its name.
    pub name: String,
    /// Its name and parameters.
    pub call: String,
    /// Its comment.
    pub meaning: String,
}

/// Every macro that this module makes; `credit_features` comes first.
pub fn macros() -> Vec<Macro> {
    let row = Macro {
        name: "credit_features".to_owned(),
        call: "credit_features(as_of, known, lag_months)".to_owned(),
        meaning: MACRO_COMMENT.to_owned(),
    };
    std::iter::once(row).chain(MACROS.iter().flat_map(|sql| macros_in(sql))).collect()
}

/// The macros that `sql` makes and comments on.
pub fn macros_in(sql: &str) -> Vec<Macro> {
    let comments = sql.split("COMMENT ON MACRO ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.strip_prefix("TABLE ").unwrap_or(rest).split_once(" IS '")?;
        let call = sql.split_once(&format!("CREATE MACRO {name}("))?.1.split_once(')')?.0;
        let meaning = rest.split("';").next()?.replace("''", "'");
        Some(Macro { name: name.to_owned(), call: format!("{name}({call})"), meaning })
    });
    comments.collect()
}

/// The text of a table macro of the steps of `credit_features`, ending in `row`.
pub fn steps_macro(name: &str, row: &str) -> String {
    format!("CREATE MACRO {name}(as_of, known, lag_months) AS TABLE WITH {} {row}", STEPS.join(","))
}

/// Makes what features are computed with: reference tables and macros. The history tables need not hold anything yet,
/// but `links`, `link_snapshots` and the three histories of jobs must be there.
///
/// # Errors
/// DuckDB's.
pub fn create_macros(connection: &Connection, reference: &Reference) -> duckdb::Result<()> {
    let tables = dictionary::relations().iter().filter(|relation| relation.name.starts_with("ref_"));
    for table in tables {
        connection.execute_batch(&created(table))?;
    }
    reference.load(connection)?;
    MACROS.iter().try_for_each(|sql| connection.execute_batch(sql))?;
    connection.execute_batch(&steps_macro("credit_features", ROW))
}

/// Completes a `vinculo.duckdb`: everything of [`create_macros`], the tables `credit_features` and `link_errors`, both
/// empty, views, comments, and the lines of the dictionary.
///
/// # Errors
/// DuckDB's.
pub fn complete(connection: &Connection, reference: &Reference) -> duckdb::Result<()> {
    create_macros(connection, reference)?;
    for table in ["credit_features", "link_errors"] {
        connection.execute_batch(&created(dictionary::relation(table)))?;
    }
    VIEWS.iter().try_for_each(|sql| connection.execute_batch(sql))?;
    connection.execute_batch(&format!("COMMENT ON MACRO TABLE credit_features IS {}", quoted(MACRO_COMMENT)))?;
    dictionary::relations().iter().try_for_each(|relation| comment(connection, relation))?;
    fill_dictionary(connection, &dictionary::relations().iter().flat_map(lines).collect::<Vec<_>>())
}

/// Fills `link_errors` with `errors` (link, resource, code), and with nothing else.
///
/// # Errors
/// DuckDB's.
pub fn set_errors(connection: &Connection, errors: &[(String, String, String)]) -> duckdb::Result<()> {
    connection.execute_batch("DELETE FROM link_errors")?;
    // One statement a row would take longer than all else when many links wait for their users.
    let mut rows = connection.appender("link_errors")?;
    errors.iter().try_for_each(|(link_id, resource, code)| rows.append_row([link_id, resource, code]))?;
    rows.flush()
}

/// The statement that makes a table.
fn created(table: &Relation) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
    format!("CREATE TABLE {} ({})", table.name, columns.join(", "))
}

fn comment(connection: &Connection, relation: &Relation) -> duckdb::Result<()> {
    let Relation { name, key, meaning, kind, columns } = relation;
    let what = match kind {
        Kind::Table => "TABLE",
        Kind::View => "VIEW",
    };
    let meaning = quoted(&format!("{meaning}; key: {}", key.join(", ")));
    let mut statements = format!("COMMENT ON {what} {name} IS {meaning}");
    for column in columns {
        // Writing to a String cannot fail.
        let _ = write!(statements, "; COMMENT ON COLUMN {name}.{} IS {}", column.name, quoted(&column.comment()));
    }
    connection.execute_batch(&statements)
}

/// A line of the data dictionary: of a relation as a whole when it has no column.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line<'a> {
    /// The table or view.
    pub table: &'a str,
    /// The column; empty for the relation.
    pub column: &'a str,
    /// Place of the column, from 1 on; 0 for the relation.
    pub position: i32,
    /// Its type.
    pub kind: Option<&'a str>,
    /// Whether it is a part of the key.
    pub is_key: bool,
    /// What it means.
    pub meaning: &'a str,
    /// Its unit.
    pub unit: Option<&'a str>,
    /// When it is NULL.
    pub null: Option<&'a str>,
    /// How sensitive it is.
    pub sensitivity: Option<&'a str>,
    /// An example, made up.
    pub example: Option<&'a str>,
    /// How a feature is computed.
    pub formula: Option<&'a str>,
    /// The direction in which a feature is expected to speak.
    pub direction: Option<&'a str>,
}

/// Adds `lines` to the data dictionary, in one statement: hundreds would take longer than all else.
///
/// # Errors
/// DuckDB's.
pub fn fill_dictionary(connection: &Connection, lines: &[Line<'_>]) -> duckdb::Result<()> {
    let optional = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), quoted);
    let rows: Vec<String> = lines
        .iter()
        .map(|line| {
            let first = [quoted(line.table), quoted(line.column), line.position.to_string(), optional(line.kind)];
            let second = [line.is_key.to_string(), quoted(line.meaning)];
            let last = [line.unit, line.null, line.sensitivity, line.example, line.formula, line.direction];
            let cells: Vec<String> = first.into_iter().chain(second).chain(last.map(optional)).collect();
            format!("({})", cells.join(", "))
        })
        .collect();
    connection.execute_batch(&format!("INSERT INTO data_dictionary VALUES {}", rows.join(", ")))
}

/// What the data dictionary says of a relation.
fn lines(relation: &'static Relation) -> impl Iterator<Item = Line<'static>> {
    let whole = Line { table: &relation.name, meaning: &relation.meaning, ..Line::default() };
    let columns = (1..).zip(&relation.columns).map(|(position, column)| Line {
        table: &relation.name,
        column: &column.name,
        position,
        kind: Some(&column.kind),
        is_key: relation.key.contains(&column.name),
        meaning: &column.meaning,
        unit: column.unit.as_deref(),
        null: Some(&column.null),
        sensitivity: Some(&column.sensitivity),
        example: Some(&column.example),
        formula: column.formula.as_deref(),
        direction: column.direction.map(dictionary::Direction::name),
    });
    std::iter::once(whole).chain(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_macro_says_what_it_is_and_how_it_is_called() {
        let macros = macros();
        assert_eq!(macros.len(), MACROS.len() + 1);
        let expected = macros.iter().find(|described| described.name == "inss_expected").unwrap();
        assert_eq!(expected.call, "inss_expected(base, month)");
        assert!(expected.meaning.starts_with("INSS contribution expected") && expected.meaning.ends_with("the month"));
    }

    /// A database with empty tables that features are computed from, and the macros.
    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        for name in super::super::compute::SOURCES {
            let columns = &crate::schema::get().table(name).columns;
            let columns: Vec<_> = columns.iter().map(|it| format!("{} {}", it.name, it.kind.duckdb())).collect();
            connection.execute_batch(&format!("CREATE TABLE {name} ({})", columns.join(", "))).unwrap();
        }
        create_macros(&connection, &Reference::compiled()).unwrap();
        connection
    }

    #[test]
    fn a_contribution_is_expected_on_a_sum_of_more_digits_than_an_amount_has() {
        let connection = database();
        for (base, expected) in [
            ("1621.00", "121.58"),
            ("6000", "641.51"),
            ("999999999999999.9999", "988.09"),
            ("1000000000000000.00", "988.09"),
            ("sum(999999999999999.9999)", "988.09"),
            ("1e16", "988.09"),
            ("0", "NULL"),
        ] {
            let sql = format!(
                "SELECT coalesce(CAST(inss_expected(base, DATE '2026-01-01') AS VARCHAR), 'NULL') FROM \
                 (SELECT {base} AS base FROM range(7) GROUP BY ALL)"
            );
            let found = connection.query_row(&sql, [], |row| row.get::<_, String>(0));
            assert_eq!(found.unwrap(), expected, "{base}");
        }
    }

    #[test]
    fn a_month_before_the_window_does_not_take_away_the_spread_within_it() {
        let connection = database();
        connection
            .execute_batch(
                "INSERT INTO links (link_id, created_at) VALUES ('rich', TIMESTAMPTZ '2020-01-01 00:00:00Z'); \
                 INSERT INTO link_snapshots (link_id, resource, collected_at, fetched_at) \
                     SELECT 'rich', 'employments', t, t FROM (SELECT TIMESTAMPTZ '2026-06-10 12:00:00Z' AS t); \
                 INSERT INTO employments_history (link_id, employment_key, start_date, known_from, is_deleted) \
                     VALUES ('rich', 'job', DATE '2020-01-01', TIMESTAMPTZ '2020-02-01 00:00:00Z', false); \
                 INSERT INTO salaries_history (link_id, employment_key, reference_month, salary_type, seq, \
                     base_amount, currency, known_from, is_deleted) \
                     SELECT 'rich', 'job', DATE '2026-05-01' - to_months(CAST(n AS INTEGER)), 'REGULAR', 0, \
                         CASE WHEN n = 13 THEN 10000000000000 ELSE 1000 + n % 2 END, 'BRL', \
                         TIMESTAMPTZ '2026-06-10 12:00:00Z', false \
                     FROM range(14) AS t(n) WHERE n <> 12",
            )
            .unwrap();
        let sql = "SELECT income_cv_12m FROM credit_features(DATE '2026-06-15', TIMESTAMPTZ '2026-06-15 23:59:59Z', 1)";
        // Of six months of 1,000 and six of 1,001: sqrt(3 / 11) / 1000.5.
        assert_eq!(connection.query_row(sql, [], |row| row.get::<_, Option<f64>>(0)).unwrap(), Some(0.0005));
    }
}
