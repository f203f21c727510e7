//! Where each feature of one link comes from: the jobs, months and answers behind it, and why it is NULL.
//!
//! *Takes* a published `vinculo.duckdb`. *Promises* to compute with the same SQL as the published rows, ending in other
//! selections of the same steps.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{Months, NaiveDate};
use duckdb::Connection;
use serde::Serialize;
use serde_json::{Map, Value};

use super::catalog::{quoted, steps_macro};
use super::compute::Computer;
use super::dictionary::{self, Column};
use super::reference::Reference;
use super::runs::{Mode, Run};

/// What the steps of `credit_features` say besides the row, by name.
const EVIDENCE: [(&str, &str); 5] = [
    ("answers", include_str!("sql/explain/answers.sql")),
    ("jobs", include_str!("sql/explain/jobs.sql")),
    ("job_months", include_str!("sql/explain/job_months.sql")),
    ("person_months", include_str!("sql/explain/person_months.sql")),
    ("occupations", include_str!("sql/explain/occupations.sql")),
];

/// Columns that say what a row is, not what is known of a person.
const ABOUT_THE_ROW: [&str; 6] = ["link_id", "as_of_date", "known_at", "pit_mode", "lag_months", "feature_version"];

/// One row of `credit_features`, with its reasons.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The link.
    pub link_id: String,
    /// The date.
    pub as_of_date: String,
    /// The instant up to which anything known was used.
    pub known_at: String,
    /// `strict` or `retro`.
    pub pit_mode: &'static str,
    /// Months before the date's own that are not yet complete.
    pub lag_months: u32,
    /// Each feature, in the order of the table.
    pub features: Vec<Feature>,
    /// The rows that features name, by table.
    pub evidence: BTreeMap<&'static str, Vec<Map<String, Value>>>,
}

/// One feature.
#[derive(Debug, Serialize)]
pub struct Feature {
    /// Its column.
    pub name: &'static str,
    /// Its value; absent for NULL.
    pub value: Option<Value>,
    /// What it says.
    pub meaning: &'static str,
    /// How it is computed.
    pub formula: Option<&'static str>,
    /// Why it is NULL.
    pub why_null: Option<String>,
    /// The rows that it came from: their keys by table of the evidence.
    pub from: BTreeMap<&'static str, Vec<String>>,
}

/// Explains the row of a link in the `vinculo.duckdb` at `file`; `None` when the file does not have the link.
///
/// # Errors
/// DuckDB's.
pub fn explain(file: &Path, reference: &Reference, link_id: &str, run: &Run) -> duckdb::Result<Option<Explanation>> {
    let computer = Computer::over_duckdb(file, reference)?;
    computer.look_at(&format!("link_id = {}", quoted(link_id)))?;
    let connection = computer.connection();
    let call = |name: &str| {
        let micros = run.known_at.as_micros();
        format!("{name}(DATE '{}', make_timestamptz({micros}::BIGINT), {})", run.as_of, run.lag_months)
    };
    let Some(row) = rows(connection, &exact(&call("credit_features"), "true"))?.pop() else { return Ok(None) };
    let mut evidence = BTreeMap::new();
    for (name, sql) in EVIDENCE {
        let of_steps = format!("explain_{name}");
        connection.execute_batch(&steps_macro(&of_steps, sql))?;
        let texts = format!("SELECT CAST(COLUMNS(*) AS VARCHAR) FROM {}", call(&of_steps));
        evidence.insert(name, rows(connection, &texts)?);
    }
    let facts = Facts { row: &row, evidence: &evidence, run };
    let columns = &dictionary::relation("credit_features").columns;
    let columns = columns.iter().filter(|column| !ABOUT_THE_ROW.contains(&column.name.as_str()));
    let features = columns.map(|column| facts.feature(column)).collect();
    Ok(Some(Explanation {
        link_id: link_id.to_owned(),
        as_of_date: run.as_of.to_string(),
        known_at: run.known_at.to_string(),
        pit_mode: run.mode.name(),
        lag_months: run.lag_months,
        features,
        evidence,
    }))
}

/// The published row of a link, as JSON; `None` when there is none.
///
/// # Errors
/// DuckDB's.
pub fn published(
    file: &Path,
    link_id: &str,
    as_of: NaiveDate,
    mode: Mode,
) -> duckdb::Result<Option<Map<String, Value>>> {
    let config =
        duckdb::Config::default().access_mode(duckdb::AccessMode::ReadOnly)?.enable_autoload_extension(false)?;
    let connection = Connection::open_with_flags(file, config)?;
    let condition = format!("link_id = {} AND as_of_date = DATE '{as_of}' AND pit_mode = '{mode}'", quoted(link_id));
    Ok(rows(&connection, &exact("credit_features", &condition))?.pop())
}

/// A value without JSON's quotes.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Selects every column of `credit_features` in a form that JSON keeps exactly.
fn exact(from: &str, condition: &str) -> String {
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
fn rows(connection: &Connection, sql: &str) -> duckdb::Result<Vec<Map<String, Value>>> {
    let mut statement = connection.prepare(&format!("SELECT CAST(to_json(r) AS VARCHAR) FROM ({sql}) AS r"))?;
    let texts = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<duckdb::Result<Vec<_>>>()?;
    // What DuckDB calls JSON is an object for a row.
    Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
}

/// What is known of one row.
struct Facts<'f> {
    row: &'f Map<String, Value>,
    evidence: &'f BTreeMap<&'static str, Vec<Map<String, Value>>>,
    run: &'f Run,
}

/// Which rows a feature is made of.
enum From {
    Answers,
    Jobs(fn(&Map<String, Value>) -> bool),
    /// Person-months from the window's end less the first number to less the second.
    Months(u32, u32, Which),
    /// All paid person-months.
    AllMonths,
    /// The latest full month.
    LatestFull,
    /// Person-months of the year of F29.
    LastYear,
    /// Months of the main job in the 3-month window.
    MainJobMonths,
    /// Everything.
    Everything,
}

/// Which person-months.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Paid,
    /// Paid, and no paid job began or ended in it.
    Full,
}

impl Facts<'_> {
    fn feature(&self, column: &'static Column) -> Feature {
        let value = self.row.get(&column.name).filter(|value| !value.is_null()).cloned();
        let why_null = value.is_none().then(|| self.why_null(column));
        Feature {
            name: &column.name,
            from: if value.is_some() { self.from(&column.name) } else { BTreeMap::new() },
            value,
            meaning: &column.meaning,
            formula: column.formula.as_deref(),
            why_null,
        }
    }

    fn from(&self, name: &str) -> BTreeMap<&'static str, Vec<String>> {
        sources(name).into_iter().flat_map(|source| self.keys(&source)).filter(|(_, keys)| !keys.is_empty()).collect()
    }

    fn keys(&self, source: &From) -> Vec<(&'static str, Vec<String>)> {
        let jobs = |wanted: fn(&Map<String, Value>) -> bool| {
            self.evidence["jobs"].iter().filter(|job| wanted(job)).map(|job| text(job, "employment_key")).collect()
        };
        match source {
            From::Answers => {
                vec![("answers", self.evidence["answers"].iter().map(|answer| text(answer, "collected_at")).collect())]
            }
            From::Jobs(wanted) => vec![("jobs", jobs(*wanted))],
            From::Months(first, last, which) => {
                let Some(window) = self.window(*first, *last) else { return Vec::new() };
                vec![("person_months", self.months(*which, |month| (window.0..=window.1).contains(&month)))]
            }
            From::AllMonths => vec![("person_months", self.months(Which::Paid, |_| true))],
            From::LatestFull => {
                let mut months = self.months(Which::Full, |_| true);
                let latest = months.pop();
                vec![("person_months", latest.into_iter().collect())]
            }
            From::LastYear => {
                let year = self.last_year();
                vec![("person_months", self.months(Which::Paid, |month| month.format("%Y").to_string() == year))]
            }
            From::MainJobMonths => {
                let Some((first, last)) = self.window(2, 0) else { return Vec::new() };
                let main = self.evidence["jobs"].iter().find(|job| is(job, "is_main_job"));
                let main = main.map(|job| text(job, "employment_key")).unwrap_or_default();
                let months = self.evidence["job_months"].iter().filter(|row| {
                    text(row, "employment_key") == main
                        && month_of(row).is_some_and(|month| (first..=last).contains(&month))
                });
                vec![("job_months", months.map(|row| text(row, "month")).collect())]
            }
            From::Everything => {
                let months = self.evidence["job_months"].iter();
                let months = months.map(|row| format!("{} {}", text(row, "employment_key"), text(row, "month")));
                vec![("jobs", jobs(|_| true)), ("job_months", months.collect())]
            }
        }
    }

    fn months(&self, which: Which, wanted: impl Fn(NaiveDate) -> bool) -> Vec<String> {
        let rows = self.evidence["person_months"].iter().filter(|row| {
            !row.get("income").is_none_or(Value::is_null)
                && (which == Which::Paid || !is(row, "is_partial"))
                && month_of(row).is_some_and(&wanted)
        });
        rows.map(|row| text(row, "month")).collect()
    }

    /// The months from the window's end less `first` to less `last`.
    fn window(&self, first: u32, last: u32) -> Option<(NaiveDate, NaiveDate)> {
        let end: NaiveDate = self.row.get("window_end_month")?.as_str()?.parse().ok()?;
        Some((end.checked_sub_months(Months::new(first))?, end.checked_sub_months(Months::new(last))?))
    }

    fn last_year(&self) -> String {
        let last = self.run.as_of.checked_sub_months(Months::new(self.run.lag_months)).unwrap_or(self.run.as_of);
        let year = if last.format("%m").to_string() == "12" { last } else { last - chrono::TimeDelta::days(366) };
        year.format("%Y").to_string()
    }

    fn why_null(&self, column: &Column) -> String {
        let Run { as_of, known_at, .. } = self.run;
        if self.row.get("has_data") != Some(&Value::Bool(true)) {
            return format!(
                "the link's jobs were not asked for and answered by {known_at}; not asked is not unemployed"
            );
        }
        let name = column.name.as_str();
        let is_null = |other: &str| self.row.get(other).is_none_or(Value::is_null);
        let none_full = |first, last| {
            let window = self
                .window(first, last)
                .filter(|&(first, last)| self.months(Which::Full, |month| (first..=last).contains(&month)).is_empty());
            window.map(|(first, last)| format!("no month from {first} to {last} is paid in full"))
        };
        let no_jobs = self.evidence["jobs"].is_empty().then(|| format!("no job that began by {as_of} was known"));
        let none_alive = || {
            let any = self.evidence["jobs"].iter().any(|job| is(job, "is_alive"));
            (!any).then(|| format!("no job is alive on {as_of}"))
        };
        let no_pay = || {
            let paid = self.months(Which::Paid, |_| true);
            paid.is_empty().then(|| "no month is paid in reais".to_owned())
        };
        let few = || {
            let (first, last) = self.window(11, 0)?;
            let full = self.months(Which::Full, |month| (first..=last).contains(&month)).len();
            (full < 6).then(|| format!("{full} of the 12 months to {last} are paid in full, and 6 are needed"))
        };
        let reason = match name {
            "income_median_3m_brl" => no_jobs.or_else(|| none_full(2, 0)),
            "income_median_6m_brl" => no_jobs.or_else(|| none_full(5, 0)),
            "income_median_12m_brl" => no_jobs.or_else(|| none_full(11, 0)),
            "income_cv_12m" | "income_slope_12m" => no_jobs.or_else(few),
            "income_growth_yoy" => no_jobs.or_else(|| none_full(5, 0)).or_else(|| none_full(17, 12)),
            "income_ratio_3m_12m" | "income_in_minimum_wages" | "income_to_teto" => no_jobs.or_else(|| none_full(2, 0)),
            "thirteenth_ratio_last_year" => {
                let year = self.last_year();
                no_jobs.or_else(|| {
                    let paid = self.months(Which::Paid, |month| month.format("%Y").to_string() == year);
                    paid.is_empty().then(|| format!("no month of {year} is paid"))
                })
            }
            "inss_plausible_share_12m" | "consignado_margin_upper_brl" => None,
            "cbo_major_group" | "cbo_family" => no_jobs.or_else(none_alive).or_else(|| {
                let chosen = !self.evidence["occupations"].is_empty();
                let what =
                    if chosen { "the title of its occupation has no CBO code" } else { "no occupation of it is known" };
                Some(format!("the main job is known, but {what}"))
            }),
            "tenure_current_months" | "main_job_income_share" | "employer_sector" => no_jobs.or_else(none_alive),
            "cnae_section" | "cnae_division" => no_jobs
                .or_else(none_alive)
                .or_else(|| Some("the main job's employer has no CNAE code that could be read".to_owned())),
            "data_age_days" => Some("a row made after its date has no age".to_owned()),
            "income_last_brl"
            | "concurrent_months_12m"
            | "inss_zero_months_12m"
            | "salary_lag_months"
            | "history_months"
            | "capped_months_12m" => no_jobs.or_else(no_pay),
            _ => no_jobs,
        };
        let of_main_job = (name == "main_job_income_share" && is_null("income_median_3m_brl")).then(|| none_full(2, 0));
        reason.or(of_main_job.flatten()).unwrap_or_else(|| column.null.clone())
    }
}

/// What a feature is made of.
fn sources(name: &str) -> Vec<From> {
    let all = || From::Jobs(|_| true);
    let main = || From::Jobs(|job| is(job, "is_main_job"));
    match name {
        "has_data" | "data_age_days" => vec![From::Answers],
        "window_end_month" | "salary_lag_months" | "history_months" => vec![all(), From::AllMonths],
        "is_employed" | "open_jobs" => vec![From::Jobs(|job| is(job, "is_alive"))],
        "tenure_current_months"
        | "employer_sector"
        | "cnae_section"
        | "cnae_division"
        | "cbo_major_group"
        | "cbo_family" => vec![main()],
        "open_jobs_without_pay" => vec![From::Jobs(|job| is(job, "is_zombie"))],
        "income_last_brl" => vec![From::LatestFull],
        "income_median_3m_brl" | "income_in_minimum_wages" | "income_to_teto" => vec![From::Months(2, 0, Which::Full)],
        "income_median_6m_brl" => vec![From::Months(5, 0, Which::Full)],
        "income_growth_yoy" => vec![From::Months(17, 0, Which::Full)],
        "income_median_12m_brl" | "income_cv_12m" | "income_slope_12m" | "income_ratio_3m_12m" => {
            vec![From::Months(11, 0, Which::Full)]
        }
        "income_mean_12m_zero_filled_brl"
        | "paid_months_12m"
        | "concurrent_months_12m"
        | "capped_months_12m"
        | "inss_plausible_share_12m"
        | "inss_zero_months_12m" => vec![From::Months(11, 0, Which::Paid)],
        "thirteenth_ratio_last_year" => vec![From::LastYear],
        "main_job_income_share" => vec![main(), From::MainJobMonths],
        "consignado_margin_upper_brl" => {
            vec![
                From::Jobs(|job| is(job, "is_alive") && text(job, "sector") == "PRIVATE"),
                From::Months(2, 0, Which::Paid),
            ]
        }
        "salary_coverage_24m" => vec![all(), From::Months(23, 0, Which::Paid)],
        "dq_flags" => vec![From::Everything],
        _ => vec![all()],
    }
}

fn text(row: &Map<String, Value>, name: &str) -> String {
    row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn is(row: &Map<String, Value>, name: &str) -> bool {
    row.get(name).and_then(Value::as_str) == Some("true")
}

fn month_of(row: &Map<String, Value>) -> Option<NaiveDate> {
    row.get("month")?.as_str()?.parse().ok()
}
