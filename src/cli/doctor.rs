//! `vinculo doctor`: what `check` looks at, and then the world. Each finding says what would mend it. Changes nothing; without
//! a daemon it calls Belvo twice, within the budget.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::DATE;
use rustix::fs::{Access, access};
use serde::Serialize;
use serde_json::json;

use super::{Exit, Global, environment, streams, work};
use crate::admin::client::{self, Client};
use crate::admin::status::{Status, grouped};
use crate::belvo::{self, Code};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Needs};
use crate::publish::{self, Lake, OwnLake};
use crate::runs::Ending;
use crate::store::{self, Readers, args};
use crate::{daemon, erase, schedule, schema, verify, words};

/// Less than this free space is close to none.
const LEAST_FREE: u64 = 64 << 20;

/// Less than this is soon too little: a publish stages a second copy of what changed.
const LITTLE_FREE: u64 = 1 << 30;

/// A clock that is further off than this tells wrong times to schedules and to `known_from`.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// Longest time that a publish may be late, beyond `lake.publish_max_wait`.
const PUBLISH_TOLERANCE: Duration = Duration::from_mins(5);

/// With links to watch, Belvo is not silent for so long.
const LONGEST_SILENCE: Duration = Duration::from_hours(72);

/// Longest wait for Belvo's clock.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `doctor` takes: nothing of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let needs = Needs { belvo: true, webhook: true };
    let (config, problems) = Config::examine(global.config.as_deref(), environment(), &[], needs);
    let mut report = Report::default();
    for problem in problems {
        report.add(Level::Error, "config", problem.found(), &problem.fix, Exit::Config);
    }
    // Looking at the world through a wrong configuration would find other things than there are.
    if report.findings.is_empty() {
        look(&config, global, &mut report)?;
    }
    report.tell(global)?;
    Ok(report.exit)
}

fn look(config: &Config, global: &Global, report: &mut Report) -> anyhow::Result<()> {
    let now = Clock::system().now();
    jobs_and_schemas(config, report);
    secrets(config, global, report);
    folders(config, report);
    let lake = Lake::look(&config.lake.path);
    // Before the state: a snapshot that comes in between is none that it does not know.
    let last = lake.last();
    let state = state(config, &lake, now, report);
    let is_sound = report.exit == Exit::Done;
    work::block_on(async {
        match Client::find(config).await {
            Ok(Some(daemon)) => ask_daemon(&daemon, report).await,
            Ok(None) => {
                ports(config, report);
                // A state that cannot be used would not keep the count of calls.
                if is_sound {
                    ask_belvo(config, report).await?;
                }
            }
            Err(error) => {
                let mend = "set admin.token to the daemon's own, or wait until the other command has ended";
                report.add(Level::Error, error.code(), error.to_string(), mend, Exit::State);
            }
        }
        anyhow::Ok(())
    })?;
    reference(config, now, report);
    if let Some((own, status)) = state {
        match own.may_replace(&lake, last.as_ref()) {
            Ok(()) => published(config, &lake, &own, &status, now, report),
            Err(error) => {
                let mend = match error.code() {
                    publish::LAKE_MISSING => {
                        "mount the volume of lake.url, or let `vinculo rebuild` make the lake anew"
                    }
                    _ => {
                        "put the right state back, point lake.url elsewhere, or let `vinculo rebuild` replace the lake"
                    }
                };
                report.add(Level::Error, error.code(), error.to_string(), mend, Exit::Damaged);
            }
        }
        work_left(&status, report);
    }
    Ok(())
}

fn jobs_and_schemas(config: &Config, report: &mut Report) {
    match (schedule::load(config.jobs_dir.as_deref()), schema::load()) {
        (Ok(jobs), Ok(_)) => {
            let tables = schema::get().tables.len();
            report.fine("config", format!("configuration, {} jobs and {tables} tables are right", jobs.len()));
        }
        (Err(wrong), _) => {
            for mistake in wrong {
                report.add(Level::Error, "jobs", mistake.found(), &mistake.fix, Exit::Config);
            }
        }
        (_, Err(problem)) => {
            report.add(Level::Error, "schemas", problem.to_string(), "install vinculo again", Exit::Failed);
        }
    }
}

/// Secrets that are missing, or that others may read.
fn secrets(config: &Config, global: &Global, report: &mut Report) {
    if let Some(note) = config.state.unkept_promise() {
        let what = note.split(": ").next().unwrap_or(note);
        let mend = "put the output of `openssl rand -base64 32` into state.encryption_key, and start the daemon again";
        report.warn("encryption_key_missing", what, mend);
    }
    if config.pii.pepper.is_none() {
        let mend =
            "put the output of `openssl rand -base64 32` into pii.pepper, keep it for ever, and run `vinculo rebuild`";
        report.warn("pepper_missing", "pii.pepper is empty, so that every person_key is NULL", mend);
    }
    if config.admin.token.is_none() {
        let what = "admin.token is empty, so that no command can ask a running daemon and its API answers nobody";
        report.warn("token_missing", what, "put the output of `openssl rand -base64 32` into admin.token");
    }
    for key in config.short_secrets() {
        let mend = match key {
            "pii.pepper" => {
                "put the output of `openssl rand -base64 32` there and run `vinculo rebuild`: every person_key changes"
            }
            _ => "put the output of `openssl rand -base64 32` there, and tell whoever uses it",
        };
        report.warn("secret_short", format!("{key} is so short that it can be guessed"), mend);
    }
    let Some(file) = Config::file(global.config.as_deref()) else { return };
    if mode_of(file).is_some_and(|mode| mode & 0o007 != 0) {
        let what = format!("everybody on this machine may read {}, which holds secrets", file.display());
        report.warn("config_readable", what, format!("chmod o-rwx {}", file.display()));
    }
}

/// Folders that cannot be written, files that others may read, and disks that are full.
fn folders(config: &Config, report: &mut Report) {
    let state = &config.state.path;
    let folder = state.parent().unwrap_or(Path::new("/"));
    for (key, folder) in [("state.url", folder), ("lake.url", &config.lake.path)] {
        let there = existing(folder);
        if access(&there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            let (what, mend) = (
                format!("{key}: this user may not write {}", there.display()),
                format!("chown $(id -u) {}", there.display()),
            );
            report.add(Level::Error, "not_writable", what, &mend, Exit::Config);
        }
        let Ok(free) = store::free_space(&there) else { continue };
        // A backup needs as much as the state, and a rebuild as much as the lake.
        let wanted = LITTLE_FREE.max(size_of(state));
        let told = format!("{} MiB are free under {}", grouped(free >> 20), there.display());
        let mend = match key {
            "state.url" => "free space there, or name a larger disk: `vinculo backup` and `restore` move the state",
            _ => "free space there, or name a larger disk: `vinculo publish` writes the lake anew there",
        };
        match free {
            0..LEAST_FREE => report.add(Level::Error, "disk_full", format!("{key}: only {told}"), mend, Exit::Failed),
            free if free < wanted => report.warn("disk_low", format!("{key}: {told}"), mend),
            _ => report.fine("disk", told),
        }
    }
    let shown: Vec<_> = [state.clone(), state.with_added_extension("lock"), state.with_file_name("tombstones.jsonl")]
        .into_iter()
        .filter(|path| mode_of(path).is_some_and(|mode| mode & 0o077 != 0))
        .collect();
    if let Some(path) = shown.first().filter(|path| *path == state) {
        let what = format!("others than its owner may read {}, which holds personal data", path.display());
        report.warn("state_readable", what, format!("chmod 600 {}*", path.display()));
    }
}

/// The state, and whether it can be read.
fn state(config: &Config, lake: &Lake, now: Timestamp, report: &mut Report) -> Option<(OwnLake, Status)> {
    let readers = Readers::configured(&config.state);
    if let Some(damage) = verify::strange_tombstones(&readers, &config.state.path) {
        report.add(Level::Error, damage.code, damage.what, "vinculo verify", Exit::Damaged);
    }
    let has_key = config.state.encryption_key.is_some();
    let look = |tx: &store::Tx<'_>| {
        if tx.count("SELECT count(*) FROM link_keys", args![])? > 0 && !has_key {
            return Err(store::Error::KeyMissing);
        }
        let newest = "SELECT max(received_at) FROM webhooks";
        let newest = tx.one(newest, args![], |row| row.opt_at(0))?.flatten();
        Ok((OwnLake::of(tx, lake)?, newest))
    };
    let looked =
        readers.read(look).and_then(|found| Ok((found, Status::gather(&config.state.path, &config.lake.path, now)?)));
    let ((own, newest_webhook), status) = match looked {
        Ok(found) => found,
        Err(error @ store::Error::Missing(_)) => {
            report.warn("never_started", error.to_string(), "vinculo serve");
            return None;
        }
        Err(error) => {
            let mend = match error.code() {
                "state_newer" => "run the newer vinculo that wrote it",
                "state_key_missing" | "state_key_wrong" => "write the key that the state was made with",
                _ => "vinculo verify, and if it names damage: vinculo restore FILE",
            };
            report.add(Level::Error, error.code(), error.to_string(), mend, Exit::of_code(error.code()));
            return None;
        }
    };
    let version = &status.durability.schema_version;
    report.fine("state", format!("the state has schema {version} and {} links", grouped(status.links)));
    match newest_webhook {
        Some(at) if at > now && at.since(now) > CLOCK_TOLERANCE => {
            let what = format!("the newest webhook is of {at}, which is still to come: the clock went back");
            report.warn("clock_went_back", what, "timedatectl set-ntp true");
        }
        Some(at) if status.links > 0 && now.since(at) > LONGEST_SILENCE => {
            let what = format!("no webhook came since {at}");
            let mend = "compare URL and Authorization in Belvo's dashboard with webhook.path and webhook.authorization";
            report.warn("no_webhooks", what, mend);
        }
        _ => {}
    }
    Some((own, status))
}

fn published(config: &Config, lake: &Lake, own: &OwnLake, status: &Status, now: Timestamp, report: &mut Report) {
    let mend = if status.held_by.is_some() { "look for publish_failed in the daemon's log" } else { "vinculo publish" };
    match lake.current() {
        Some(manifest) => {
            let age = Timestamp::parse(&manifest.published_at).map_or(Duration::ZERO, |at| now.since(at));
            let (number, at) = (manifest.snapshot, &manifest.published_at);
            let late = config.lake.publish_max_wait + PUBLISH_TOLERANCE;
            if manifest.built_from.change < own.built_from.change && age > late {
                let what = format!("snapshot {number:06} of {at} lacks what changed since");
                report.warn("publish_late", what, mend);
            } else {
                report.fine("published", format!("snapshot {number:06} was published at {at}"));
            }
        }
        None => match lake.current_number() {
            Some(number) if lake.folder(number).exists() => {
                let what = format!("the manifest of snapshot {number:06} cannot be read, though readers see its files");
                report.add(Level::Error, "manifest_damaged", what, "vinculo rebuild", Exit::Damaged);
            }
            _ if status.links > 0 => report.warn("nothing_published", "readers see nothing yet", mend),
            _ => {}
        },
    }
}

/// Tables of the law that end, or have ended.
fn reference(config: &Config, now: Timestamp, report: &mut Report) {
    let mend = "install a newer vinculo, or put the table of the new year into reference.dir";
    let (mut is_fine, expiries) = (true, config.lake.reference.expiries());
    for expiry in &expiries {
        let (table, until) = (expiry.table, expiry.valid_to);
        if expiry.is_past(now) {
            let what = format!("{table} knows the law until {until} alone: features that need it are NULL");
            report.add(Level::Error, "reference_expired", what, mend, Exit::Damaged);
        } else if expiry.is_near(now) {
            let what = format!("{table} knows the law until {until}: features that need it are NULL from then on");
            report.warn("reference_expires", what, mend);
        } else {
            continue;
        }
        is_fine = false;
    }
    if let (true, Some(first)) = (is_fine, expiries.iter().map(|expiry| expiry.valid_to).min()) {
        report.fine("reference", format!("the reference tables know the law until {first}"));
    }
}

/// What stands in the way of the running daemon.
async fn ask_daemon(daemon: &Client, report: &mut Report) {
    let mut is_blocked = false;
    match daemon.problems().await {
        Ok(problems) if problems.is_empty() => report.fine("daemon", "the daemon runs, and nothing stands in its way"),
        Ok(problems) => {
            is_blocked = problems.iter().any(|code| code == Code::ApiBlocked.name());
            for code in &problems {
                standing(code, report);
            }
        }
        Err(error) => lost(&error, report),
    }
    match daemon.live().await.map(|live| live.budget) {
        Ok(Some(budget)) => match budget.paused_until {
            // It was just told who is to blame.
            Some(until) if is_blocked => {
                let blocked = Code::ApiBlocked;
                report.warn(blocked.name(), format!("no call leaves before {until}"), blocked.advice());
            }
            Some(until) => {
                let what = format!("no call leaves before {until}, though this daemon keeps within Belvo's limit");
                report.warn("budget_shared", what, SHARED);
            }
            None => report.fine("budget", format!("{} of {} calls are in use", budget.in_use, budget.limit)),
        },
        Ok(None) => {}
        Err(error) => lost(&error, report),
    }
}

/// Something that stands in the daemon's way.
fn standing(code: &str, report: &mut Report) {
    let what = format!("the daemon is not ready ({code}): {}", words::what(code));
    report.add(Level::Error, code, what, words::advice(code), Exit::of_code(code));
}

const SHARED: &str = "find who else calls Belvo from this address, and lower belvo.budget by what they need";

fn lost(error: &client::Error, report: &mut Report) {
    report.add(Level::Error, error.code(), error.to_string(), "look at the daemon's log", Exit::Failed);
}

/// Whether the daemon could listen.
fn ports(config: &Config, report: &mut Report) {
    for (key, address) in [("webhook.listen", config.webhook.listen), ("admin.listen", config.admin.listen)] {
        if let Err(error) = try_port(address) {
            let mend = match error.kind() {
                ErrorKind::AddrInUse => format!("ss -ltnp 'sport = :{}' says who; or set {key}", address.port()),
                _ => format!("set {key} to an address of this machine that this user may listen on"),
            };
            let what = format!("{key}: {address} cannot be listened on: {error}");
            report.add(Level::Error, "port_taken", what, &mend, Exit::Failed);
        }
    }
}

fn try_port(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// Whether Belvo takes the keys, and has the same time.
async fn ask_belvo(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let clock = Clock::system();
    let folder = config.state.path.parent().unwrap_or(Path::new("/"));
    // The count of calls lies beside the state; before the first start there is none.
    let budget = if folder.is_dir() {
        daemon::budget(&config.belvo, &daemon::ledger(&config.state.path), clock.clone())?
    } else {
        belvo::Budget::open(config.belvo.budget, config.belvo.reserve, None, clock.clone())?
    };
    let client = belvo::Client::new(&config.belvo, budget, clock.clone())?;
    let leave = belvo::Leave::of(belvo::Class::Ordinary).waiting(belvo::Patience::Short);
    match belvo::links::list_page(&client, 1, 1, leave).await {
        Ok(_) => report.fine("credentials", format!("{} takes the keys", config.belvo.base_url)),
        Err(failure) => {
            let exit = Exit::of_code(failure.code.name());
            report.add(Level::Error, failure.code.name(), failure.to_string(), failure.advice(), exit);
            return Ok(());
        }
    }
    let permit = client.budget().acquire(belvo::Class::Ordinary).await;
    let http = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build()?;
    let answer = http.head(config.belvo.base_url.clone()).send().await;
    permit.answered();
    let date = answer.ok().and_then(|answer| answer.headers().get(DATE)?.to_str().map(str::to_owned).ok());
    // Who sends no date cannot be compared with.
    let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(&date).ok()) else { return Ok(()) };
    let (theirs, ours) = (Timestamp::from(chrono::DateTime::<chrono::Utc>::from(theirs)), clock.now());
    let off = if theirs > ours { theirs.since(ours) } else { ours.since(theirs) };
    if off > CLOCK_TOLERANCE {
        let what = format!("this machine's clock and Belvo's differ by {} s", off.as_secs());
        report.warn("clock_off", what, "timedatectl set-ntp true");
    } else {
        report.fine("clock", "the clock agrees with Belvo's");
    }
    Ok(())
}

/// What waits for a person, and what failed last.
fn work_left(status: &Status, report: &mut Report) {
    if status.blocked > 0 {
        let what = format!("{} refreshes wait for a person", grouped(status.blocked));
        report.warn("blocked", what, "vinculo links list --json, and do what each link's what_to_do says");
    }
    // A daemon finishes them, and tells of those that have failed.
    if status.erasures_unfinished > 0 && status.held_by.is_none() {
        let what = format!("{} erasures were begun and are not finished", grouped(status.erasures_unfinished));
        report.warn(erase::ERASURE_UNFINISHED, what, "vinculo serve");
    }
    if let Some(quarantined) = status.webhooks.get("quarantined").filter(|count| **count > 0) {
        let what = format!("{} webhooks are in the quarantine", grouped(*quarantined));
        report.warn(
            "quarantine",
            what,
            "vinculo webhooks list --outcome quarantined, and vinculo webhooks replay --quarantined",
        );
    }
    let failed = |code: Code| status.errors.get(code.name()).copied().filter(|count| *count > 0);
    if let Some(limited) = failed(Code::RateLimited) {
        let what = format!("{} refreshes met Belvo's limit, though this daemon keeps within it", grouped(limited));
        report.warn("budget_shared", what, SHARED);
    }
    if let Some(count) = failed(Code::ApiBlocked) {
        let blocked = Code::ApiBlocked;
        report.warn(
            blocked.name(),
            format!("{} refreshes failed: {}", grouped(count), blocked.what()),
            blocked.advice(),
        );
    }
    for job in &status.jobs {
        let Some(outcome) = job.outcome.as_deref() else { continue };
        if Ending::of(outcome).is_trouble() {
            let what = format!("the job {} last ended with {outcome}", job.job);
            report.warn("job_failed", what, format!("vinculo jobs run {}", job.job));
        }
    }
}

/// The nearest folder above `path` that is there, or itself.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn mode_of(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|metadata| metadata.permissions().mode())
}

/// Bytes of the state with its log.
fn size_of(state: &Path) -> u64 {
    let files = [state.to_owned(), PathBuf::from(format!("{}-wal", state.display()))];
    files.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    code: String,
    what: String,
    /// The command, or the step.
    mend: Option<String>,
}

/// Everything that was looked at, and what it ends the command with: the first error's own code.
#[derive(Debug)]
struct Report {
    findings: Vec<Finding>,
    exit: Exit,
}

impl Default for Report {
    fn default() -> Self {
        Self { findings: Vec::new(), exit: Exit::Done }
    }
}

impl Report {
    fn fine(&mut self, code: &str, what: impl Into<String>) {
        self.findings.push(Finding { level: Level::Ok, code: code.to_owned(), what: what.into(), mend: None });
    }

    fn warn(&mut self, code: &str, what: impl Into<String>, mend: impl Into<String>) {
        let (code, mend) = (code.to_owned(), Some(mend.into()));
        self.findings.push(Finding { level: Level::Warning, code, what: what.into(), mend });
    }

    fn add(&mut self, level: Level, code: &str, what: String, mend: &str, exit: Exit) {
        if self.exit == Exit::Done {
            self.exit = exit;
        }
        self.findings.push(Finding { level, code: code.to_owned(), what, mend: Some(mend.to_owned()) });
    }

    fn tell(&self, global: &Global) -> io::Result<()> {
        let out = &mut streams::out();
        if global.json {
            let document =
                json!({ "ok": self.exit == Exit::Done, "exit_code": self.exit as u8, "findings": self.findings });
            return writeln!(out, "{document:#}");
        }
        let is_terminal = io::stdout().is_terminal();
        for finding in &self.findings {
            let Finding { level, code, what, mend } = finding;
            let level = if is_terminal { level.colored() } else { level.to_string() };
            writeln!(out, "{level} {what} ({code})")?;
            if let Some(mend) = mend {
                writeln!(out, "        → {mend}")?;
            }
        }
        Ok(())
    }
}

impl Level {
    fn colored(self) -> String {
        let color = match self {
            Self::Ok => 32,
            Self::Warning => 33,
            Self::Error => 31,
        };
        format!("\u{1b}[{color}m{self}\u{1b}[0m")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok     ",
            Self::Warning => "warning",
            Self::Error => "error  ",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_mend_itself_is_not_said_to() {
        let mut report = Report::default();
        for code in ["task_ended", "lake_missing", "api_auth", "never_heard_of"] {
            standing(code, &mut report);
        }
        let told: Vec<_> = report
            .findings
            .iter()
            .map(|finding| format!("{}; {}", finding.what, finding.mend.as_deref().unwrap_or_default()))
            .collect();
        insta::assert_snapshot!(told.join("\n"), @"
        the daemon is not ready (task_ended): a task of the daemon has ended; start the daemon anew, which loses nothing, and report this with the log
        the daemon is not ready (lake_missing): the folder of the lake is empty; mount its volume, or run vinculo rebuild if it was removed on purpose
        the daemon is not ready (api_auth): Belvo refuses the keys; check belvo.secret_id, belvo.secret_password and that they belong to belvo.base_url
        the daemon is not ready (never_heard_of): never heard of; the log says more
        ");
        assert!(!told.concat().contains("by itself"));
    }
}
