//! `vinculo features`: the rows that credit decisions read, computed, explained and kept.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context, bail};
use chrono::{Months, NaiveDate};
use serde_json::{Value, json};

use super::table::Table;
use super::{Exit, Global, ordered, streams};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Needs};
use crate::database;
use crate::features::explain::{self, Explanation};
use crate::features::frozen::{self, Decision, Frozen};
use crate::features::published;
use crate::features::runs::{self, Mode, Run, Wanted};
use crate::link_id::LinkId;
use crate::operations::Order;
use crate::publish::{FeaturesAt, Lake};
use crate::store::{self, Readers};

/// What `features` takes.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// The date, YYYY-MM-DD [default: today in UTC]
    #[arg(long, value_name = "DATE")]
    pub as_of: Option<NaiveDate>,
    /// What may have been known
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Strict)]
    pub mode: Mode,
    /// Months before the date's own that are not yet complete [default: that of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=24))]
    pub lag_months: Option<u32>,
    /// Something else with features
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What else can be done with features.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Show each feature of a link with the rows that it came from, and why it is NULL
    Explain(Explain),
    /// Keep the row that a decision used, as it is
    Freeze(Freeze),
}

/// What `features explain` takes.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// The link
    #[arg(long, value_name = "ID")]
    pub link: String,
    /// The date, YYYY-MM-DD
    #[arg(long, value_name = "DATE")]
    pub as_of: NaiveDate,
    /// What may have been known
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Strict)]
    pub mode: Mode,
    /// Months before the date's own that are not yet complete [default: that of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=24))]
    pub lag_months: Option<u32>,
}

/// What `features freeze` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Freeze {
    /// Your id of the decision; once more for the same row changes nothing, and for another row is refused
    #[arg(long, value_name = "X")]
    pub decision_id: String,
    /// The link
    #[arg(long, value_name = "ID")]
    pub link: LinkId,
    /// The date, YYYY-MM-DD
    #[arg(long, value_name = "DATE")]
    pub as_of: NaiveDate,
    /// What may have been known
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Strict)]
    pub mode: Mode,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    match &args.action {
        None => compute(args, &config, global),
        Some(Action::Explain(args)) => explain(args, &config, global),
        Some(Action::Freeze(args)) => freeze(args, &config, global),
    }
}

/// Has the run recorded and published.
fn compute(args: &Args, config: &Config, global: &Global) -> anyhow::Result<Exit> {
    let lag_months = args.lag_months.unwrap_or(config.features.lag_months);
    if let Some(as_of) = args.as_of
        && store::holder(&config.state.path).is_none()
    {
        // A daemon refuses dates by its own clock; alone, nothing is to be made for one that is refused.
        runs::clocks(as_of, args.mode, Clock::system().now())?;
    }
    // There may be no state yet.
    let before = Readers::of(&config.state.path).read(runs::all).unwrap_or_default();
    let order = Order::Features(Wanted { as_of: args.as_of, mode: args.mode, lag_months });
    let run = ordered::carry_out(order, ordered::STATE_AND_LAKE, global)?;
    ordered::finish(run.as_ref(), global, |run| {
        if run.message.is_none() {
            let recorded = Readers::of(&config.state.path).read(|tx| {
                // Which day is today is for the daemon to say.
                let is_it = |recorded: &Run| run.name.as_deref() == Some(&recorded.name());
                let recorded = runs::all(tx)?.into_iter().find(is_it);
                recorded.map(|run| Ok::<_, store::Error>((run, runs::left_out(tx, &run)?))).transpose()
            })?;
            let (recorded, left_out) = recorded.context("the run is not on record")?;
            let as_of = recorded.as_of;
            warn_of_expiry(config, as_of, global)?;
            // Whoever carries out the order records it anew, unless it is final by their clock.
            if before.contains(&recorded) {
                let what = format!(
                    "the strict run of {as_of} is final, since decisions may have used it: {left_out} tracked links came later and \
                     are not in it; `--mode retro` computes another one beside it"
                );
                streams::note(&what, global)?;
            }
            tell(&recorded, left_out, config, global)?;
        }
        Ok(())
    })
}

fn warn_of_expiry(config: &Config, as_of: NaiveDate, global: &Global) -> io::Result<()> {
    let past = config.lake.reference.expiries().into_iter().filter(|expiry| expiry.valid_to < as_of);
    past.into_iter().try_for_each(|expiry| {
        let (table, end) = (expiry.table, expiry.valid_to);
        let mend = "put the next one into reference.dir";
        streams::note(&format!("warning: {table} ends on {end}, so features that need it are NULL; {mend}"), global)
    })
}

fn tell(run: &Run, left_out: u64, config: &Config, global: &Global) -> anyhow::Result<()> {
    let Run { as_of, mode, known_at, lag_months, .. } = run;
    let lake = Lake::look(&config.lake.path);
    let manifest = lake.current().context("nothing is published")?;
    let FeaturesAt { path, rows } = lake.features_at(&manifest, *as_of);
    let out = &mut streams::out();
    if global.json {
        let document = json!({
            "as_of_date": as_of.to_string(), "pit_mode": mode.name(), "known_at": known_at.to_string(),
            "lag_months": lag_months, "rows": rows, "links_left_out": left_out, "snapshot": manifest.snapshot, "path": path,
        });
        writeln!(out, "{document:#}")?;
    } else {
        writeln!(out, "snapshot {:06}: {path}, {rows} rows", manifest.snapshot)?;
        writeln!(out, "  {mode}, known until {known_at}, a lag of {lag_months} month(s)")?;
    }
    Ok(())
}

fn explain(args: &Explain, config: &Config, global: &Global) -> anyhow::Result<Exit> {
    let file = database::published(&config.lake.path)?;
    let run = if let Some(run) = published_run(&file, args)? {
        run
    } else {
        let (mode, known_at) = runs::clocks(args.as_of, args.mode, Clock::system().now())?;
        let lag_months = args.lag_months.unwrap_or(config.features.lag_months);
        Run { as_of: args.as_of, mode, known_at, lag_months, ran_at: known_at, change: 0 }
    };
    let explanation = explain::explain(&file, &config.lake.reference, &args.link, &run)?;
    let Some(explanation) = explanation else {
        bail!("there is no link {} in the lake: `vinculo sql \"SELECT link_id FROM links\"` lists them", args.link)
    };
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&explanation)?)?;
    } else {
        show(&explanation, out)?;
    }
    Ok(Exit::Done)
}

/// The run that the published row of the link came from: what is explained is what readers see, with the same clock.
fn published_run(file: &Path, args: &Explain) -> anyhow::Result<Option<Run>> {
    let row = published::row_of(file, &args.link, args.as_of, args.mode)?;
    let run = row.and_then(|row| {
        let known_at = Timestamp::parse(row.get("known_at")?.as_str()?)?;
        let lag_months = row.get("lag_months")?.as_u64()?.try_into().ok()?;
        Some(Run { as_of: args.as_of, mode: args.mode, known_at, lag_months, ran_at: known_at, change: 0 })
    });
    Ok(run.filter(|run| args.lag_months.is_none_or(|lag_months| lag_months == run.lag_months)))
}

/// Tables of the evidence that people are shown, with their columns; those that are numbers come with `true`.
const SHOWN: [(&str, &[(&str, bool)]); 3] = [
    (
        "jobs",
        &[
            ("employment_key", false),
            ("sector", false),
            ("start_date", false),
            ("ended_on", false),
            ("counted_to", false),
            ("first_paid_month", false),
            ("last_paid_month", false),
            ("is_alive", false),
            ("is_zombie", false),
            ("is_main_job", false),
        ],
    ),
    (
        "job_months",
        &[("month", false), ("employment_key", false), ("base", true), ("retained", true), ("thirteenth", true)],
    ),
    (
        "person_months",
        &[
            ("month", false),
            ("income", true),
            ("inss", true),
            ("jobs_paid", true),
            ("thirteenth", true),
            ("is_partial", false),
            ("minimum_wage", true),
            ("teto", true),
        ],
    ),
];

/// So many rows of each table are shown: two years of months, and the year before of F24.
const ROWS_SHOWN: usize = 36;

fn show(explanation: &Explanation, out: &mut impl io::Write) -> io::Result<()> {
    let Explanation { link_id, as_of_date, known_at, pit_mode, lag_months, features, evidence } = explanation;
    writeln!(
        out,
        "{link_id} as of {as_of_date}, {pit_mode}, known until {known_at}, a lag of {lag_months} month(s)\n"
    )?;
    let jobs: Vec<&str> = evidence["jobs"].iter().filter_map(|job| job.get("employment_key")?.as_str()).collect();
    for feature in features {
        let value = feature.value.as_ref().map_or("NULL".to_owned(), published::plain);
        writeln!(out, "{:<32} {value}", feature.name)?;
        if let Some(why) = &feature.why_null {
            writeln!(out, "    NULL because {why}")?;
            continue;
        }
        writeln!(out, "    {}", feature.meaning)?;
        if let Some(formula) = feature.formula {
            writeln!(out, "    = {formula}")?;
        }
        for (table, keys) in &feature.from {
            writeln!(out, "    from {}", in_short(table, keys, &jobs))?;
        }
    }
    for (name, columns) in SHOWN {
        let rows = &evidence[name];
        let left_out = rows.len().saturating_sub(ROWS_SHOWN);
        if rows.is_empty() {
            continue;
        }
        let which = if left_out > 0 {
            format!(": the latest {ROWS_SHOWN} of {}; --json shows all", rows.len())
        } else {
            String::new()
        };
        writeln!(out, "\n{name}{which}")?;
        let mut table = Table::new(
            std::iter::once(("job".to_owned(), true))
                .chain(columns.iter().map(|(name, is_number)| ((*name).to_owned(), *is_number)))
                .skip(usize::from(name == "person_months")),
        );
        for row in &rows[left_out..] {
            let job = row.get("employment_key").and_then(Value::as_str).map(|key| number_of(key, &jobs));
            let cells =
                columns.iter().map(|(name, _)| row.get(*name).filter(|value| !value.is_null()).map(published::plain));
            table.push(std::iter::once(job).chain(cells).skip(usize::from(name == "person_months")));
        }
        table.write(out)?;
    }
    Ok(())
}

/// Keys of evidence for people: jobs by their number in the table of jobs, months that follow each other as a span.
fn in_short(table: &str, keys: &[String], jobs: &[&str]) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match table {
        "jobs" if keys.len() > 1 && keys.len() == jobs.len() => format!("all {} jobs", jobs.len()),
        "jobs" => {
            let numbers: Vec<String> = keys.iter().map(|key| number_of(key, jobs)).collect();
            format!("job {}", numbers.join(", "))
        }
        "person_months" => format!("{}: {}", count(keys.len(), "month"), spans(keys.iter().map(String::as_str))),
        "job_months" => {
            let mut by_job: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
            for (job, month) in keys.iter().filter_map(|key| key.split_once(' ')) {
                by_job.entry(jobs.iter().position(|key| *key == job).unwrap_or_default() + 1).or_default().push(month);
            }
            let jobs = by_job.into_iter().map(|(job, months)| format!("job {job} in {}", spans(months.into_iter())));
            jobs.collect::<Vec<_>>().join("; ")
        }
        _ => format!("{table}: {}", keys.join(", ")),
    }
}

/// The number of a job in the table of jobs.
fn number_of(key: &str, jobs: &[&str]) -> String {
    jobs.iter().position(|job| *job == key).map_or_else(|| key.to_owned(), |at| (at + 1).to_string())
}

/// Months that follow each other as a span: `2025-01 to 2025-10, 2026-02`.
fn spans<'m>(months: impl Iterator<Item = &'m str>) -> String {
    let mut months: Vec<NaiveDate> = months.filter_map(|month| month.parse().ok()).collect();
    months.sort_unstable();
    let spans: Vec<String> = months
        .chunk_by(|before, next| *before + Months::new(1) == *next)
        .map(|span| match span {
            [only] => only.format("%Y-%m").to_string(),
            [first, .., last] => format!("{} to {}", first.format("%Y-%m"), last.format("%Y-%m")),
            [] => String::new(),
        })
        .collect();
    spans.join(", ")
}

fn freeze(args: &Freeze, config: &Config, global: &Global) -> anyhow::Result<Exit> {
    let Freeze { decision_id, link, as_of, mode } = args.clone();
    let order = Order::Freeze(Decision { decision_id, link_id: link, as_of, mode });
    let run = ordered::carry_out(order, ordered::STATE_AND_LAKE, global)?;
    ordered::finish(run.as_ref(), global, |_| {
        let kept = Readers::configured(&config.state).read(|tx| frozen::of(tx, &args.decision_id))?;
        let Frozen { decision_id, link_id, as_of, mode, row, .. } = kept.context("the row is not on record")?;
        let out = &mut streams::out();
        if global.json {
            let document = json!({
                "decision_id": decision_id, "link_id": link_id.as_str(), "as_of_date": as_of.to_string(), "pit_mode": mode.name(), "row": row,
            });
            writeln!(out, "{document:#}")?;
        } else {
            writeln!(out, "decision {decision_id} keeps the {mode} row of {link_id} for {as_of}")?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_that_follow_each_other_are_a_span() {
        let months = ["2025-11-01", "2025-12-01", "2026-01-01", "2026-03-01"];
        assert_eq!(spans(months.into_iter()), "2025-11 to 2026-01, 2026-03");
        let keys = ["b 2025-12-01", "b 2026-01-01", "a 2026-01-01"].map(str::to_owned);
        assert_eq!(in_short("job_months", &keys, &["a", "b"]), "job 1 in 2026-01; job 2 in 2025-12 to 2026-01");
        assert_eq!(in_short("jobs", &["b".to_owned()], &["a", "b"]), "job 2");
    }
}
