//! How things stand: for `vinculo status`, read from the state and the lake, also while a daemon runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::belvo::Budget;
use crate::clock::Timestamp;
use crate::config;
use crate::erase::Begun;
use crate::links;
use crate::problems::Problems;
use crate::publish::Lake;
use crate::queue::{self, Backlog};
use crate::records::Drift;
use crate::reference::Expiry;
use crate::resources::Resource;
use crate::runs::{self, LastOfJob};
use crate::schedule::AHEAD;
use crate::store::{self, Readers, Tx, args};
use crate::widget;

/// How things stand.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Status {
    /// When this was true.
    pub at: String,
    /// Version of this program.
    pub version: &'static str,
    /// Process id of the instance that holds the state, if one does.
    pub held_by: Option<String>,
    /// Tracked links.
    pub links: u64,
    /// Refreshes that wait or run.
    pub waiting: u64,
    /// Of these, those that failed and will be tried again.
    pub retrying: u64,
    /// Refreshes that wait for a person.
    pub blocked: u64,
    /// Widget sessions whose user is still to come.
    pub users_awaited: u64,
    /// Erasures that were begun and are not done.
    pub erasures_unfinished: u64,
    /// How many refreshes last failed with each code; and under `unknown_links`, when that is an alarm, how many links of the last
    /// hour webhooks named that Belvo does not know.
    pub errors: BTreeMap<String, u64>,
    /// Webhooks by what became of them.
    pub webhooks: BTreeMap<String, u64>,
    /// The same, by type.
    pub webhooks_by_type: BTreeMap<String, BTreeMap<String, u64>>,
    /// What Belvo's answers held that the schema does not know, since the state was made: by resource, `fields`, `values`
    /// and `rejected` records. New versions of records are counted.
    pub drift: BTreeMap<String, u64>,
    /// The last run of each job.
    pub jobs: Vec<JobRun>,
    /// How much of Belvo's request budget is in use; absent without a daemon that tells.
    pub budget: Option<BudgetUse>,
    /// What stands in the way of the daemon's work; absent without a daemon that tells.
    pub problems: Option<Vec<Standing>>,
    /// What readers see; absent before the first publish.
    pub snapshot: Option<Snapshot>,
    /// Until when each reference table knows the law.
    pub reference: Vec<Expiry>,
    /// How the state is kept.
    pub durability: Durability,
    /// Versions of the libraries that hold data.
    pub libraries: Libraries,
}

/// How much of the request budget is in use right now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetUse {
    /// Calls within the running window.
    pub in_use: usize,
    /// Calls that a window may have.
    pub limit: u32,
    /// Length of a window, in milliseconds.
    pub window_ms: u64,
    /// Until when no call leaves; absent while calls leave.
    pub paused_until: Option<String>,
}

impl BudgetUse {
    /// How much of `budget`, opened with `settings`, is in use.
    pub fn of(budget: &Budget, settings: config::Budget) -> Self {
        Self {
            in_use: budget.usage().in_use,
            limit: settings.requests,
            window_ms: u64::try_from(settings.per.as_millis()).unwrap_or(u64::MAX),
            paused_until: budget.paused_until().map(|until| until.to_string()),
        }
    }
}

/// Something that stands in the way of the daemon's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "StandingProblem")]
pub struct Standing {
    /// Its stable code, as in `/readyz`.
    pub code: String,
    /// Since when.
    pub since: String,
}

impl Standing {
    /// What stands among `problems` at `now`.
    pub fn of(problems: &Problems, now: Timestamp) -> Vec<Self> {
        let standing = |(code, age): (&str, Duration)| Self { code: code.to_owned(), since: (now - age).to_string() };
        problems.ages().into_iter().map(standing).collect()
    }
}

/// The last run of a job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobRun {
    /// The job.
    pub job: String,
    /// The time that it was due, or that it was ordered.
    pub slot_at: String,
    /// `schedule`, `catch-up` when it was missed, or `api` or `command`, which ordered it.
    pub reason: String,
    /// `done`, `partly`, `failed`, `interrupted`, or the code of a failure; absent while it runs.
    pub outcome: Option<String>,
    /// How many things it touched.
    pub item_count: Option<i64>,
}

/// What readers see.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Snapshot {
    /// Its number.
    pub number: u32,
    /// When it was built.
    pub published_at: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
}

/// How the state is kept.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Durability {
    /// SQLite's journal.
    pub journal_mode: String,
    /// What the writer waits for at a commit.
    pub synchronous: &'static str,
    /// Version of the state's schema.
    pub schema_version: String,
}

/// Versions of the libraries that hold data.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Libraries {
    /// SQLite.
    pub sqlite: String,
    /// DuckDB.
    pub duckdb: String,
    /// arrow.
    pub arrow: &'static str,
    /// parquet.
    pub parquet: &'static str,
}

impl Status {
    /// How things stand with the state at `state` and the lake at `lake`. Blocks.
    ///
    /// # Errors
    /// [`store::Error::Missing`] before the first start, or [`store::Error::Database`].
    pub fn gather(state: &Path, lake: &Path, now: Timestamp) -> Result<Self, store::Error> {
        Readers::of(state).read(|tx| Self::read(tx, state, lake, now))
    }

    fn read(tx: &Tx<'_>, state: &Path, lake: &Path, now: Timestamp) -> Result<Self, store::Error> {
        let Backlog { pending, retrying, blocked } = queue::backlog(tx)?;
        let text = |sql: &str| tx.one(sql, args![], |row| row.text(0)).map(Option::unwrap_or_default);
        let mut errors = queue::errors(tx)?;
        errors.extend(links::alarm(tx, now)?.map(|unknown| (links::UNKNOWN_LINKS.to_owned(), unknown)));
        Ok(Self {
            at: now.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            held_by: store::holder(state),
            links: tx.count("SELECT count(*) FROM links", args![])?,
            waiting: pending,
            retrying,
            blocked,
            users_awaited: widget::waiting_count(tx, now)?,
            erasures_unfinished: Begun::count(tx)?,
            errors,
            webhooks: counts(tx, "SELECT outcome, count(*) FROM webhooks GROUP BY 1")?,
            webhooks_by_type: webhooks_by_type(tx)?,
            drift: Drift::counted(tx)?,
            jobs: last_runs(tx, now)?,
            budget: None,
            problems: None,
            snapshot: Snapshot::read(lake, now),
            reference: Vec::new(),
            durability: Durability {
                journal_mode: text("PRAGMA journal_mode")?,
                synchronous: store::SYNCHRONOUS,
                schema_version: tx.meta("schema_version")?.unwrap_or_default(),
            },
            libraries: Libraries {
                sqlite: text("SELECT sqlite_version()")?,
                duckdb: duckdb_version(),
                arrow: arrow::ARROW_VERSION,
                parquet: parquet::file::properties::DEFAULT_CREATED_BY.trim_start_matches("parquet-rs version "),
            },
        })
    }
}

fn counts(tx: &Tx<'_>, sql: &str) -> Result<BTreeMap<String, u64>, store::Error> {
    Ok(tx.all(sql, args![], |row| Ok((row.text(0)?, row.count(1)?)))?.into_iter().collect())
}

/// Types that are not known are one, because anybody may send any.
fn webhooks_by_type(tx: &Tx<'_>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, store::Error> {
    let mut by_type = BTreeMap::<String, BTreeMap<String, u64>>::new();
    tx.each("SELECT webhook_type, outcome, count(*) FROM webhooks GROUP BY 1, 2", args![], |row| {
        let name = row.opt_text(0)?.unwrap_or_default();
        let is_known = Resource::by_webhook_type(&name).is_some() || matches!(name.as_str(), "LINK" | "LINKS");
        let name = if is_known { name } else { "other".to_owned() };
        *by_type.entry(name).or_default().entry(row.text(1)?).or_default() += row.count(2)?;
        Ok::<_, store::Error>(())
    })?;
    Ok(by_type)
}

fn last_runs(tx: &Tx<'_>, now: Timestamp) -> Result<Vec<JobRun>, store::Error> {
    let told = |(job, LastOfJob { run, slot_at, item_count })| JobRun {
        job,
        slot_at: slot_at.to_string(),
        reason: run.reason,
        outcome: run.outcome,
        item_count,
    };
    Ok(runs::last_of_jobs(tx, now + AHEAD)?.into_iter().map(told).collect())
}

impl Snapshot {
    /// The lake's current snapshot. Its manifest never changes, so one read is one snapshot.
    fn read(lake: &Path, now: Timestamp) -> Option<Self> {
        let manifest = Lake::look(lake).current()?;
        let age = Timestamp::parse(&manifest.published_at).map(|published| now.since(published)).unwrap_or_default();
        Some(Self {
            number: manifest.snapshot,
            published_at: manifest.published_at,
            age_seconds: age.as_secs(),
            rows: manifest.tables.into_iter().map(|table| (table.name, table.rows)).collect(),
        })
    }
}

fn duckdb_version() -> String {
    let asked = duckdb::Connection::open_in_memory()
        .and_then(|connection| connection.query_row("SELECT version()", [], |row| row.get(0)));
    asked.unwrap_or_else(|_| "unknown".to_owned())
}

/// One line for people.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "links {} · {} waiting, {} retrying, {} blocked · ",
            grouped(self.links),
            grouped(self.waiting),
            grouped(self.retrying),
            grouped(self.blocked)
        )?;
        if self.users_awaited > 0 {
            write!(f, "{} waiting for their user · ", grouped(self.users_awaited))?;
        }
        if self.erasures_unfinished > 0 {
            write!(f, "{} erasures unfinished · ", grouped(self.erasures_unfinished))?;
        }
        if let Some(BudgetUse { in_use, limit, paused_until, .. }) = &self.budget {
            write!(f, "budget {in_use} of {limit} in use")?;
            if let Some(until) = paused_until {
                write!(f, ", paused until {until}")?;
            }
            f.write_str(" · ")?;
        }
        match &self.snapshot {
            Some(snapshot) => {
                let age = humantime::format_duration(rounded(snapshot.age_seconds));
                write!(f, "snapshot {:06} published {age} ago", snapshot.number)?;
                if let Some(rows) = snapshot.rows.get("salaries") {
                    write!(f, " · {} salary rows", grouped(*rows))?;
                }
            }
            None => f.write_str("nothing published yet")?,
        }
        if let Some(problems) = self.problems.as_ref().filter(|problems| !problems.is_empty()) {
            let codes: Vec<&str> = problems.iter().map(|problem| problem.code.as_str()).collect();
            write!(f, " · in the way: {}", codes.join(", "))?;
        }
        if !self.drift.is_empty() {
            write!(f, " · {} values, fields and records that no schema knows", grouped(self.drift.values().sum()))?;
        }
        match &self.held_by {
            Some(pid) => write!(f, " · held by process {pid}"),
            None => f.write_str(" · no daemon"),
        }
    }
}

/// Seconds below a minute, minutes below a day, hours above.
fn rounded(seconds: u64) -> Duration {
    let unit = match seconds {
        0..60 => 1,
        60..86_400 => 60,
        _ => 3600,
    };
    Duration::from_secs(seconds / unit * unit)
}

/// The number with a comma every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn the_state_can_be_looked_at_while_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.db");
        let now = Timestamp::parse("2026-03-02T12:00:00Z").unwrap();
        assert!(matches!(Status::gather(&state, folder.path(), now), Err(store::Error::Missing(_))));
        let store = Store::open(&state).unwrap();
        store
            .write(|tx| {
                tx.execute("INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ('a', 0, 0)", args![])?;
                tx.execute(
                    "INSERT INTO refreshes (link_id, resource, marks, due_at, priority, attempts, last_error_code) \
                     VALUES ('a', 'owners', 1, 0, 0, 2, 'timeout')",
                    args![],
                )
            })
            .await
            .unwrap();
        let manifest = r#"{"snapshot":42,"schema_version":1,"published_at":"2026-03-02T11:58:30Z","vinculo_version":"0","built_from":
            {"state_id":"x","change":1},"link_buckets":1,"tables":[{"name":"salaries","schema_version":1,"key":[],"rows":80012,
            "files":[]}],"files":[]}"#;
        std::fs::create_dir_all(folder.path().join("snapshots/000042")).unwrap();
        std::fs::write(folder.path().join("snapshots/000042/manifest.json"), manifest).unwrap();
        std::os::unix::fs::symlink("snapshots/000042", folder.path().join("current")).unwrap();
        let mut status = Status::gather(&state, folder.path(), now).unwrap();
        let line = status.to_string();
        let expected = "links 1 · 1 waiting, 1 retrying, 0 blocked · snapshot 000042 published 1m ago · 80,012 salary rows · held by process ";
        assert_eq!(line, format!("{expected}{}", std::process::id()));
        assert_eq!((status.durability.journal_mode.as_str(), status.durability.synchronous), ("wal", "FULL"));
        assert_eq!(status.errors, BTreeMap::from([("timeout".to_owned(), 1)]));
        assert!(status.libraries.duckdb.starts_with('v'), "{}", status.libraries.duckdb);
        let problems = Problems::default();
        problems.raise("disk_full");
        status.problems = Some(Standing::of(&problems, now));
        let since = Timestamp::parse(&status.problems.as_ref().unwrap()[0].since).unwrap();
        assert!(since <= now && now.since(since) < Duration::from_mins(1), "{since}");
        assert!(status.to_string().contains("salary rows · in the way: disk_full · held by"), "{status}");
        let erasures = "INSERT INTO erasures VALUES ('1', 0, 'link', '', 'removed', NULL, '{}'), \
                        ('2', 0, 'link', '', 'done', NULL, '{}')";
        store.write(move |tx| tx.execute(erasures, args![])).await.unwrap();
        let status = Status::gather(&state, folder.path(), now).unwrap();
        assert!(status.to_string().contains("0 blocked · 1 erasures unfinished · snapshot"), "{status}");
        drop(store);
    }

    #[tokio::test]
    async fn a_run_by_a_clock_that_was_ahead_is_not_the_last_of_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.db");
        let now = Timestamp::parse("2026-03-02T12:00:00Z").unwrap();
        let store = Store::open(&state).unwrap();
        let ran = move |tx: &Tx<'_>| {
            let hour = Duration::from_hours(1);
            for (at, outcome) in
                [(now - hour, Some("done")), (now + 48 * hour, Some("disk_full")), (now - hour / 2, None)]
            {
                let sql = "INSERT INTO job_runs (job, slot_at, started_at, reason, outcome, item_count) \
                           VALUES ('daily', $1, $1, 'schedule', $2, 7)";
                tx.execute(sql, args![at, outcome])?;
            }
            Ok(())
        };
        store.write(ran).await.unwrap();
        let jobs = Status::gather(&state, folder.path(), now).unwrap().jobs;
        let told: Vec<_> =
            jobs.iter().map(|job| (job.job.as_str(), job.slot_at.as_str(), job.outcome.as_deref())).collect();
        assert_eq!(told, [("daily", (now - Duration::from_mins(30)).to_string().as_str(), None)]);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
