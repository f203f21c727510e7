//! One job as its file says it, checked; and when it is due.

use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use toml::{Table, Value};

use crate::clock::Timestamp;
use crate::links::freshness::Scope;
use crate::mistake::{Mistake, nearest};
use crate::resources::{self, Resource};

/// The jobs that come with the program, as name and text: what `init` writes, and what runs without a folder.
pub const SHIPPED: [(&str, &str); 8] = [
    ("backup", include_str!("../../jobs/backup.toml")),
    ("features", include_str!("../../jobs/features.toml")),
    ("fetch-stale-links", include_str!("../../jobs/fetch-stale-links.toml")),
    ("publish", include_str!("../../jobs/publish.toml")),
    ("recollect-single-links", include_str!("../../jobs/recollect-single-links.toml")),
    ("reconcile-links", include_str!("../../jobs/reconcile-links.toml")),
    ("retention", include_str!("../../jobs/retention.toml")),
    ("verify", include_str!("../../jobs/verify.toml")),
];

/// Something that is done at certain times.
#[derive(Debug, Clone)]
pub struct Job {
    /// The stem of its file.
    pub name: String,
    /// The five fields, as written.
    pub schedule: String,
    /// The zone whose clock the schedule means.
    pub zone: Tz,
    /// What is done.
    pub action: Action,
    /// To what.
    pub scope: Scope,
    /// Whether it runs at its times, and not only when asked for.
    pub is_enabled: bool,
    cron: Cron,
}

macro_rules! actions {
    ($($(#[$meaning:meta])* $action:ident = $name:literal,)*) => {
        /// What a job does. A new one is a line here and an arm in the daemon.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$meaning])* $action,)*
        }

        impl Action {
            /// Every action.
            const ALL: &[Self] = &[$(Self::$action),*];

            /// The name in the file.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$action => $name,)*
                }
            }
        }
    };
}

actions! {
    /// Lists anew what Belvo holds of the links in scope.
    Fetch = "fetch",
    /// Asks Belvo to read the institution again for the links in scope.
    Recollect = "recollect",
    /// Compares the tracked links with Belvo's list.
    SyncLinks = "sync-links",
    /// Publishes what changed.
    Publish = "publish",
    /// Removes what was kept for long enough.
    Retention = "retention",
    /// Copies the state into a new file of the folder `backups` beside it.
    Backup = "backup",
    /// Holds every published file and the state against what was written.
    Verify = "verify",
    /// Computes today's features.
    Features = "features",
}

impl Action {
    fn takes_scope(self) -> bool {
        matches!(self, Self::Fetch | Self::Recollect)
    }
}

/// Reads every `*.toml` in `dir`, by name; without a folder, the jobs that come with the program.
///
/// # Errors
/// Every mistake in every file at once.
pub fn load(dir: Option<&Path>) -> Result<Vec<Job>, Vec<Mistake>> {
    let (mut jobs, mut mistakes) = (Vec::new(), Vec::new());
    for (name, place, text) in texts(dir, &mut mistakes) {
        match Job::parse(&name, &place, &text) {
            Ok(job) => jobs.push(job),
            Err(wrong) => mistakes.extend(wrong),
        }
    }
    if mistakes.is_empty() { Ok(jobs) } else { Err(mistakes) }
}

/// Name, place and text of each job.
fn texts(dir: Option<&Path>, mistakes: &mut Vec<Mistake>) -> Vec<(String, String, String)> {
    let Some(dir) = dir else {
        return SHIPPED
            .iter()
            .map(|&(name, text)| (name.to_owned(), format!("jobs/{name}.toml"), text.to_owned()))
            .collect();
    };
    let entries = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut paths = entries.unwrap_or_else(|error| {
        mistakes.push(Mistake::new(
            dir.display(),
            "",
            format!("cannot be read: {error}"),
            "let this user read the folder",
        ));
        Vec::new()
    });
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut texts = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match fs::read_to_string(&path) {
            Ok(text) => texts.push((name, path.display().to_string(), text)),
            Err(error) => {
                let what = format!("cannot be read: {error}");
                mistakes.push(Mistake::new(path.display(), "", what, "let this user read it, or remove it"));
            }
        }
    }
    texts
}

impl Job {
    /// Reads the job `name` from `text`; `place` is where the text stands.
    ///
    /// # Errors
    /// Every mistake in it at once.
    pub fn parse(name: &str, place: &str, text: &str) -> Result<Self, Vec<Mistake>> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
            vec![Mistake::new(place, "", format!("line {line} is not TOML: {}", error.message()), "mend that line")]
        })?;
        let mut read = Read { place, mistakes: Vec::new() };
        read.refuse_unknown(&table, "", &["enabled", "schedule", "timezone", "action", "scope"]);
        let cron =
            read.required(&table, "schedule", "*/15 * * * *").and_then(|text| read.cron(text).map(|cron| (text, cron)));
        let zone = read.required(&table, "timezone", "America/Sao_Paulo").and_then(|text| read.zone(text));
        let action = read.required(&table, "action", "fetch").and_then(|text| read.action(text));
        let scope = read.scope(table.get("scope"), action);
        let is_enabled = table.get("enabled").is_none_or(|value| {
            value.as_bool().unwrap_or_else(|| {
                read.refuse("enabled", format!("{value} is neither true nor false"), "write true or false");
                true
            })
        });
        if !is_name(name) {
            read.refuse("", "the file's name is not one for a job", "use small letters, digits and dashes");
        }
        if !read.mistakes.is_empty() {
            return Err(read.mistakes);
        }
        let (Some((schedule, cron)), Some(zone), Some(action)) = (cron, zone, action) else {
            unreachable!("what is missing is a mistake")
        };
        Ok(Self { name: name.to_owned(), schedule: schedule.to_owned(), zone, action, scope, is_enabled, cron })
    }

    /// The first slot after `at`. A slot in a gap of the zone's clock falls on the gap's end; a slot that the clock
    /// shows twice counts the first time only, if the schedule names its hour. `None` when it is not enabled.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        if !self.is_enabled {
            return None;
        }
        let at = at.to_utc().with_timezone(&self.zone);
        self.cron.find_next_occurrence(&at, false).ok().map(|slot| Timestamp::from(slot.to_utc()))
    }

    /// The last slot after `after` that is not after `until`.
    pub(super) fn last_between(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        // Forward from a point close to the end, so that both directions cannot disagree about a gap or fold.
        let start = self.before(until).map_or(after, |before| before.max(after));
        std::iter::successors(self.next_after(start), |&slot| self.next_after(slot))
            .take_while(|&slot| slot <= until)
            .last()
    }

    /// An instant that is certainly before the last slot up to `until`.
    fn before(&self, until: Timestamp) -> Option<Timestamp> {
        let day = Duration::from_hours(24);
        let until = until.to_utc().with_timezone(&self.zone);
        let previous = Timestamp::from(self.cron.find_previous_occurrence(&until, true).ok()?.to_utc());
        Some(previous - day)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

/// Reads the keys of one file and collects what is wrong with them.
struct Read<'p> {
    place: &'p str,
    mistakes: Vec<Mistake>,
}

impl Read<'_> {
    fn refuse(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.mistakes.push(Mistake::new(self.place, key, what, fix));
    }

    fn refuse_unknown(&mut self, table: &Table, section: &str, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            let fix = nearest(key, known.iter().copied()).map_or_else(
                || format!("remove it; there are {}", known.join(", ")),
                |name| format!("did you mean {name}?"),
            );
            self.refuse(&format!("{section}{key}"), "unknown key", fix);
        }
    }

    fn required<'t>(&mut self, table: &'t Table, key: &str, example: &str) -> Option<&'t str> {
        let text = table.get(key).and_then(Value::as_str);
        if text.is_none() {
            let what = if table.contains_key(key) { "is not a text" } else { "is missing" };
            self.refuse(key, what, format!("write for example {key} = \"{example}\""));
        }
        text
    }

    fn cron(&mut self, text: &str) -> Option<Cron> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let example =
            "write minute, hour, day, month and weekday, such as \"30 6 * * 1-5\" for 06:30 from Monday to Friday";
        // The parser would take `@daily`, too.
        if text.split_whitespace().count() != 5 || text.trim_start().starts_with('@') {
            self.refuse("schedule", format!("\"{text}\" is not a five-field cron schedule"), example);
            return None;
        }
        match parser.parse(text) {
            Ok(cron) if cron.find_next_occurrence(&chrono::DateTime::UNIX_EPOCH, false).is_err() => {
                self.refuse("schedule", format!("\"{text}\" never comes"), example);
                None
            }
            Ok(cron) => Some(cron),
            Err(error) => {
                self.refuse("schedule", format!("\"{text}\" is not a five-field cron schedule: {error}"), example);
                None
            }
        }
    }

    fn zone(&mut self, text: &str) -> Option<Tz> {
        let zone = text.parse().ok();
        if zone.is_none() {
            let fix = nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())).map_or_else(
                || "write a name such as America/Sao_Paulo".to_owned(),
                |name| format!("did you mean {name}?"),
            );
            self.refuse("timezone", format!("\"{text}\" is not a time zone"), fix);
        }
        zone
    }

    fn action(&mut self, text: &str) -> Option<Action> {
        let action = Action::ALL.iter().copied().find(|action| action.name() == text);
        if action.is_none() {
            let known: Vec<_> = Action::ALL.iter().map(|action| action.name()).collect();
            let fix = format!("there are {}", known.join(", "));
            self.refuse("action", format!("there is no action \"{text}\""), fix);
        }
        action
    }

    fn scope(&mut self, scope: Option<&Value>, action: Option<Action>) -> Scope {
        let mut read = Scope { access_mode: None, older_than: Duration::ZERO, resources: resources::ALL.to_vec() };
        let Some(scope) = scope else { return read };
        let Some(scope) = scope.as_table() else {
            self.refuse("scope", "is not a section", "write [scope] and its keys");
            return read;
        };
        if action.is_some_and(|action| !action.takes_scope()) {
            self.refuse("scope", "only the actions fetch and recollect take a scope", "remove it");
        }
        self.refuse_unknown(scope, "scope.", &["access_mode", "older_than", "resources"]);
        if let Some(value) = scope.get("access_mode") {
            read.access_mode = value.as_str().filter(|mode| ["recurrent", "single"].contains(mode)).map(str::to_owned);
            if read.access_mode.is_none() {
                self.refuse(
                    "scope.access_mode",
                    format!("{value} is not an access mode"),
                    "write \"recurrent\" or \"single\"",
                );
            }
        }
        if let Some(value) = scope.get("older_than") {
            match value.as_str().and_then(|text| humantime::parse_duration(text).ok()) {
                Some(age) => read.older_than = age,
                None => self.refuse(
                    "scope.older_than",
                    format!("{value} is not a time with its unit"),
                    "write for example \"24h\"",
                ),
            }
        }
        if let Some(value) = scope.get("resources") {
            let names = value.as_array().filter(|names| !names.is_empty());
            let found = names.and_then(|names| {
                names.iter().map(|name| Resource::by_name(name.as_str()?)).collect::<Option<Vec<_>>>()
            });
            if let Some(resources) = found {
                read.resources = resources;
            } else {
                let known = resources::ALL.map(|resource| resource.name).join(", ");
                self.refuse(
                    "scope.resources",
                    format!("{value} is not a list of resources"),
                    format!("there are {known}"),
                );
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daily(schedule: &str) -> Job {
        let text = format!("schedule = \"{schedule}\"\ntimezone = \"America/Sao_Paulo\"\naction = \"publish\"");
        Job::parse("daily", "jobs/daily.toml", &text).unwrap()
    }

    fn slots(job: &Job, from: &str, count: usize) -> Vec<String> {
        let first = job.next_after(Timestamp::parse(from).unwrap());
        std::iter::successors(first, |&slot| job.next_after(slot))
            .take(count)
            .map(|slot| slot.to_utc().with_timezone(&job.zone).format("%a %F %R %z").to_string())
            .collect()
    }

    /// What is wrong with the job `name` of this text, a mistake a line.
    fn told(name: &str, text: &str) -> String {
        let mistakes = Job::parse(name, &format!("jobs/{name}.toml"), text).unwrap_err();
        mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_shipped_job_is_read() {
        let jobs = load(None).unwrap();
        // Every action there is, once; only what costs money is off.
        for &action in Action::ALL {
            let of_it: Vec<bool> = jobs.iter().filter(|job| job.action == action).map(|job| job.is_enabled).collect();
            assert_eq!(of_it, [action != Action::Recollect], "{}", action.name());
        }
        let names = |jobs: &[Job]| jobs.iter().map(|job| job.name.clone()).collect::<Vec<_>>();
        let fetch = jobs.iter().find(|job| job.action == Action::Fetch).unwrap();
        assert_eq!(fetch.scope.older_than, Duration::from_hours(24));
        let files = load(Some(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs")))).unwrap();
        let mut shipped = names(&jobs);
        shipped.sort();
        assert_eq!(names(&files), shipped);
    }

    #[test]
    fn a_job_that_is_not_enabled_has_no_slots() {
        let text = "enabled = false\nschedule = \"0 6 * * *\"\ntimezone = \"UTC\"\naction = \"publish\"";
        let job = Job::parse("daily", "jobs/daily.toml", text).unwrap();
        assert_eq!(job.next_after(Timestamp::from_micros(0)), None);
        let odd = told("daily", &text.replace("false", "\"no\""));
        assert!(odd.contains("enabled: \"no\" is neither true nor false"), "{odd}");
        let unknown = told("daily", &text.replace("publish", "sing"));
        assert!(unknown.contains("there is no action \"sing\""), "{unknown}");
    }

    #[test]
    fn one_to_five_are_monday_to_friday() {
        let slots = slots(&daily("0 6 * * 1-5"), "2026-03-06T12:00:00Z", 5);
        assert_eq!(slots.iter().map(|slot| &slot[..3]).collect::<Vec<_>>(), ["Mon", "Tue", "Wed", "Thu", "Fri"]);
    }

    #[test]
    fn a_slot_in_a_gap_comes_once_at_its_end() {
        let slots = slots(&daily("0 0 * * *"), "2018-11-03T12:00:00Z", 2);
        assert_eq!(slots, ["Sun 2018-11-04 01:00 -0200", "Mon 2018-11-05 00:00 -0200"]);
    }

    #[test]
    fn a_slot_in_a_fold_comes_once() {
        let job = daily("30 23 * * *");
        let slots = slots(&job, "2018-02-17T12:00:00Z", 2);
        assert_eq!(slots, ["Sat 2018-02-17 23:30 -0200", "Sun 2018-02-18 23:30 -0300"]);
        let first = Timestamp::parse("2018-02-18T01:30:00Z").unwrap();
        let noon = Timestamp::parse("2018-02-18T15:00:00Z").unwrap();
        assert_eq!(job.last_between(Timestamp::from_micros(0), noon), Some(first));
        assert_eq!(job.last_between(first, noon), None);
    }

    #[test]
    fn every_mistake_in_a_job_is_told_at_once() {
        let text = r#"
            schedul = "x"
            schedule = "61 * * * *"
            timezone = "America/Sao_Paolo"
            action = "sing"
            [scope]
            access_mode = "often"
            older_then = "24h"
            older_than = "24"
            resources = ["incomes"]
        "#;
        insta::assert_snapshot!(told("job", text), @r#"
jobs/job.toml: schedul: unknown key; did you mean schedule?
jobs/job.toml: schedule: "61 * * * *" is not a five-field cron schedule: Component error: Number out of bounds.; write minute, hour, day, month and weekday, such as "30 6 * * 1-5" for 06:30 from Monday to Friday
jobs/job.toml: timezone: "America/Sao_Paolo" is not a time zone; did you mean America/Sao_Paulo?
jobs/job.toml: action: there is no action "sing"; there are fetch, recollect, sync-links, publish, retention, backup, verify, features
jobs/job.toml: scope.older_then: unknown key; did you mean older_than?
jobs/job.toml: scope.access_mode: "often" is not an access mode; write "recurrent" or "single"
jobs/job.toml: scope.older_than: "24" is not a time with its unit; write for example "24h"
jobs/job.toml: scope.resources: ["incomes"] is not a list of resources; there are employments, owners
"#);
        for schedule in ["@daily", "0 30 6 * * 1-5", "6 * * *", ""] {
            let text = format!("schedule = \"{schedule}\"\ntimezone = \"UTC\"\naction = \"publish\"");
            let told = told("job", &text);
            let expected = format!("schedule: \"{schedule}\" is not a five-field cron schedule; write minute, hour");
            assert!(told.contains(&expected), "{told}");
        }
        insta::assert_snapshot!(told("Job 1", "schedule = \"0 0 30 2 *\""), @r#"
jobs/Job 1.toml: schedule: "0 0 30 2 *" never comes; write minute, hour, day, month and weekday, such as "30 6 * * 1-5" for 06:30 from Monday to Friday
jobs/Job 1.toml: timezone: is missing; write for example timezone = "America/Sao_Paulo"
jobs/Job 1.toml: action: is missing; write for example action = "fetch"
jobs/Job 1.toml: the file's name is not one for a job; use small letters, digits and dashes
"#);
    }
}
