//! Where each feature of one link comes from: the jobs, months and answers behind it, and why it is NULL.
//!
//! *Takes* a published `vinculo.duckdb`. *Promises* to compute with the same SQL as the published rows, ending in other
//! selections of the same steps.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{Datelike, Months, NaiveDate};
use serde::Serialize;
use serde_json::{Map, Value};

use super::catalog::steps_macro;
use super::compute::Computer;
use super::dictionary::{self, Column};
use super::published::{exact, rows};
use super::runs::Run;
use crate::database::quoted;
use crate::reference::Reference;

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

/// What is known of one row.
struct Facts<'f> {
    row: &'f Row,
    evidence: &'f BTreeMap<&'static str, Vec<Row>>,
    run: &'f Run,
}

/// Which rows a feature is made of.
enum Source {
    Answers,
    Jobs(fn(&Facts<'_>, &Row) -> bool),
    /// The jobs of which a number is the highest.
    JobsWithMost(fn(&Row) -> Option<i32>),
    /// Paid months of jobs of a kind, from the window's end less the number.
    JobMonths(u32, fn(&Facts<'_>, &Row) -> bool),
    /// Of each job of a kind, the latest month in the 3-month window of which INSS is known.
    LatestWithInss(fn(&Facts<'_>, &Row) -> bool),
    /// Person-months from the window's end less the first number to less the second.
    Months(u32, u32, Which),
    /// The first paid person-month, and the latest.
    FirstAndLatestPaid,
    LatestPaid,
    /// The latest full month.
    LatestFull,
    /// Person-months of the year of F29.
    LastYear,
    /// Everything.
    Everything,
}

/// A row of the evidence.
type Row = Map<String, Value>;

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
        let mut from: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for (table, mut keys) in sources(name).iter().flat_map(|source| self.keys(source)) {
            keys.retain(|key| !from.get(table).is_some_and(|known| known.contains(key)));
            if !keys.is_empty() {
                from.entry(table).or_default().extend(keys);
            }
        }
        from
    }

    fn keys(&self, source: &Source) -> Vec<(&'static str, Vec<String>)> {
        let person_months = |months: Vec<String>| vec![("person_months", months)];
        match source {
            Source::Answers => {
                vec![("answers", self.evidence["answers"].iter().map(|answer| text(answer, "collected_at")).collect())]
            }
            Source::Jobs(wanted) => vec![("jobs", self.jobs(*wanted))],
            Source::JobsWithMost(number) => {
                let most = self.evidence["jobs"].iter().filter_map(number).max();
                let jobs = self.evidence["jobs"].iter().filter(|job| most.is_some() && number(job) == most);
                vec![("jobs", jobs.map(|job| text(job, "employment_key")).collect())]
            }
            Source::JobMonths(first, wanted) => {
                let months = self.job_months(*first, "base", *wanted);
                vec![("job_months", months.map(job_month).collect())]
            }
            Source::LatestWithInss(wanted) => {
                let months = self.job_months(2, "retained", *wanted);
                let latest: BTreeMap<String, String> =
                    months.map(|row| (text(row, "employment_key"), job_month(row))).collect();
                vec![("job_months", latest.into_values().collect())]
            }
            Source::Months(first, last, which) => {
                let Some(window) = self.window(*first, *last) else { return Vec::new() };
                person_months(self.months(*which, |month| (window.0..=window.1).contains(&month)))
            }
            Source::FirstAndLatestPaid => {
                let mut months = self.months(Which::Paid, |_| true);
                let latest = months.pop();
                person_months(months.into_iter().take(1).chain(latest).collect())
            }
            Source::LatestPaid => person_months(self.months(Which::Paid, |_| true).pop().into_iter().collect()),
            Source::LatestFull => person_months(self.months(Which::Full, |_| true).pop().into_iter().collect()),
            Source::LastYear => {
                let year = self.last_year();
                let months = self.evidence["person_months"].iter();
                let months = months.filter(|row| month_of(row).is_some_and(|month| month.year() == year));
                person_months(months.map(|row| text(row, "month")).collect())
            }
            Source::Everything => {
                let months = self.evidence["job_months"].iter().map(job_month);
                vec![("jobs", self.jobs(|_, _| true)), ("job_months", months.collect())]
            }
        }
    }

    /// The keys of the jobs that are of a kind.
    fn jobs(&self, wanted: fn(&Self, &Row) -> bool) -> Vec<String> {
        let jobs = self.evidence["jobs"].iter().filter(|job| wanted(self, job));
        jobs.map(|job| text(job, "employment_key")).collect()
    }

    /// Months from the window's end less `first` on in which a job of a kind has `column`.
    fn job_months(
        &self,
        first: u32,
        column: &'static str,
        wanted: fn(&Self, &Row) -> bool,
    ) -> impl Iterator<Item = &Row> {
        let (jobs, window) = (self.jobs(wanted), self.window(first, 0));
        self.evidence["job_months"].iter().filter(move |row| {
            let is_within = |month| window.is_some_and(|(first, last)| (first..=last).contains(&month));
            !row.get(column).is_none_or(Value::is_null)
                && month_of(row).is_some_and(is_within)
                && jobs.contains(&text(row, "employment_key"))
        })
    }

    /// Whether a job counts in the months from the window's end less `first` on.
    fn is_in_window(&self, job: &Row, first: u32) -> bool {
        let Some((first, last)) = self.window(first, 0) else { return false };
        let begun = date(job, "start_date").is_some_and(|start| start < last + Months::new(1));
        begun && date(job, "counted_to").is_some_and(|end| end >= first)
    }

    /// Whether a day of the job is within so many months before the date.
    fn is_after(&self, job: &Row, day: &str, months: u32) -> bool {
        date(job, day) > self.run.as_of.checked_sub_months(Months::new(months))
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

    /// The year of F29: that of the last month that may be complete if it is a December, else the year before.
    fn last_year(&self) -> i32 {
        let last = self.run.as_of.checked_sub_months(Months::new(self.run.lag_months)).unwrap_or(self.run.as_of);
        if last.month() == 12 { last.year() } else { last.year() - 1 }
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
                    let paid = self.months(Which::Paid, |month| month.year() == year);
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
fn sources(name: &str) -> Vec<Source> {
    let alive = || Source::Jobs(|_, job| is(job, "is_alive"));
    let main = || Source::Jobs(|_, job| is(job, "is_main_job"));
    let months = |first| Source::Months(first, 0, Which::Paid);
    let full = |first| Source::Months(first, 0, Which::Full);
    match name {
        "has_data" | "data_age_days" => vec![Source::Answers],
        "window_end_month" => vec![alive(), Source::LatestPaid],
        "is_employed" | "open_jobs" => vec![alive()],
        "tenure_current_months"
        | "employer_sector"
        | "cnae_section"
        | "cnae_division"
        | "cbo_major_group"
        | "cbo_family" => vec![main()],
        "tenure_max_months" => {
            let days = |job: &Row| {
                let (start, end) = (date(job, "start_date")?, date(job, "counted_to")?);
                Some((end.num_days_from_ce() - start.num_days_from_ce()).max(0))
            };
            vec![Source::JobsWithMost(days)]
        }
        "months_since_last_job" => {
            vec![Source::JobsWithMost(|job| date(job, "counted_to").map(|day| day.num_days_from_ce()))]
        }
        "months_since_first_job" => {
            vec![Source::JobsWithMost(|job| date(job, "start_date").map(|day| -day.num_days_from_ce()))]
        }
        "employers_12m" => vec![Source::Jobs(|facts, job| has_employer(job) && facts.is_after(job, "counted_to", 12))],
        "employers_24m" => vec![Source::Jobs(|facts, job| has_employer(job) && facts.is_after(job, "counted_to", 24))],
        "employers_36m" => vec![Source::Jobs(|facts, job| has_employer(job) && facts.is_after(job, "counted_to", 36))],
        "jobs_started_12m" => vec![Source::Jobs(|facts, job| facts.is_after(job, "start_date", 12))],
        "employed_months_36m" | "gap_max_months_36m" | "gap_count_36m" => {
            vec![Source::Jobs(|facts, job| facts.is_in_window(job, 35))]
        }
        "open_jobs_without_pay" => vec![Source::Jobs(|_, job| is(job, "is_zombie"))],
        "income_last_brl" => vec![Source::LatestFull],
        "income_median_3m_brl" | "income_in_minimum_wages" | "income_to_teto" => vec![full(2)],
        "income_median_6m_brl" => vec![full(5)],
        "income_growth_yoy" => vec![full(5), Source::Months(17, 12, Which::Full)],
        "income_median_12m_brl" | "income_cv_12m" | "income_slope_12m" | "income_ratio_3m_12m" => vec![full(11)],
        "income_mean_12m_zero_filled_brl"
        | "paid_months_12m"
        | "concurrent_months_12m"
        | "inss_plausible_share_12m"
        | "inss_zero_months_12m" => vec![months(11)],
        "capped_months_12m" => vec![Source::JobMonths(11, |_, _| true)],
        "thirteenth_ratio_last_year" => vec![Source::LastYear],
        "main_job_income_share" => vec![main(), Source::JobMonths(2, |_, job| is(job, "is_main_job")), full(2)],
        "consignado_margin_upper_brl" => {
            vec![Source::LatestWithInss(|_, job| is(job, "is_alive") && text(job, "sector") == "PRIVATE")]
        }
        "salary_lag_months" => vec![Source::LatestPaid],
        "history_months" => vec![Source::FirstAndLatestPaid],
        "salary_coverage_24m" => {
            vec![Source::Jobs(|facts, job| facts.is_in_window(job, 23)), Source::JobMonths(23, |_, _| true)]
        }
        _ => vec![Source::Everything],
    }
}

fn has_employer(job: &Row) -> bool {
    !job.get("employer_key").is_none_or(Value::is_null)
}

fn text(row: &Map<String, Value>, name: &str) -> String {
    row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn is(row: &Map<String, Value>, name: &str) -> bool {
    row.get(name).and_then(Value::as_str) == Some("true")
}

fn date(row: &Row, name: &str) -> Option<NaiveDate> {
    row.get(name)?.as_str()?.parse().ok()
}

fn month_of(row: &Row) -> Option<NaiveDate> {
    date(row, "month")
}

/// The key of a month of a job.
fn job_month(row: &Row) -> String {
    format!("{} {}", text(row, "employment_key"), text(row, "month"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::features::runs::Mode;

    #[test]
    fn the_year_of_the_13th_is_the_last_that_is_complete() {
        let year = |as_of: &str, lag_months| {
            let (row, evidence, now) = (Row::new(), BTreeMap::new(), Timestamp::from_micros(0));
            let as_of = as_of.parse().unwrap();
            let run = Run { as_of, mode: Mode::Strict, known_at: now, lag_months, ran_at: now, change: 0 };
            Facts { row: &row, evidence: &evidence, run: &run }.last_year()
        };
        let years = [("2026-02-01", 1), ("2026-01-15", 1), ("2025-12-31", 1), ("2025-12-31", 0), ("2024-01-01", 0)];
        assert_eq!(years.map(|(as_of, lag_months)| year(as_of, lag_months)), [2025, 2025, 2024, 2025, 2023]);
    }
}
