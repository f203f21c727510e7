//! Whether everything that is kept is as it was written: the state's pages, bodies and audit, and every published file.
//!
//! *Takes* the state, also while a daemon writes it, and the lake. *Gives* what is damaged, file by file. *Promises* to
//! write nothing.

use std::path::Path;

use serde::Serialize;
use serde::de::IgnoredAny;

use crate::audit;
use crate::backup;
use crate::config;
use crate::link_id::log_tag;
use crate::publish::integrity::{self, Damage};
use crate::publish::{Lake, OwnLake};
use crate::records::unpack;
use crate::store::{Error, FrozenPlace, Readers, Row, Tx, VersionPlace, WebhookPlace, args};
use crate::tombstones::{self, Tombstones};

/// Bodies that are opened in one read: while somebody reads, a daemon cannot empty its log.
const AT_ONCE: u64 = 2_000;

/// Damaged bodies that are named; all are counted.
const MOST_NAMED: u64 = 100;

/// Faults that SQLite lists before it stops looking.
const MOST_FAULTS: usize = 20;

/// What was looked at, and what is wrong.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The lake, with what is wrong anywhere.
    #[serde(flatten)]
    pub lake: integrity::Verified,
    /// Bodies of the state that were opened: all, but for the damaged ones.
    pub bodies_opened: u64,
    /// Bodies that cannot be opened. The damage names so many of them as anybody reads.
    pub bodies_damaged: u64,
    /// Lines of the audit.
    pub audit_lines: u64,
}

impl Report {
    /// How many things are damaged, also those that are not named.
    pub fn damaged(&self) -> u64 {
        self.lake.damage.len() as u64 + self.unnamed()
    }

    /// Damaged bodies that are not named.
    pub fn unnamed(&self) -> u64 {
        self.bodies_damaged.saturating_sub(MOST_NAMED)
    }
}

/// Checks `state`, and the lake at `lake_path`. `progress` is told how many bodies of how many were looked at. Blocks.
///
/// # Errors
/// Those of [`Readers`], when the state cannot be looked at at all, and of [`integrity::check`]; damage is in the
/// report.
pub fn check(state: &config::State, lake_path: &Path, progress: impl Fn(u64, u64)) -> anyhow::Result<Report> {
    let readers = Readers::configured(state);
    let found = check_state(&readers, &progress)?;
    let mut lake = integrity::check(lake_path)?;
    let name = state.path.file_name().map_or(Path::new("state"), Path::new).display().to_string();
    let faults = found.faults.into_iter().map(|(code, what)| Damage { file: name.clone(), code, what });
    lake.damage.splice(0..0, faults);
    lake.damage.extend(strange_state(&readers, lake_path));
    lake.damage.extend(strange_tombstones(&readers, &state.path));
    lake.damage.extend(backup::is_list_damaged(&state.path).then(|| Damage {
        file: "backups.jsonl".to_owned(),
        code: "backup_list_damaged",
        what: "does not name all backups any more, so that receipts of erasures may not: take out what is no line of JSON"
            .to_owned(),
    }));
    Ok(Report {
        ok: lake.damage.is_empty(),
        lake,
        bodies_opened: found.opened,
        bodies_damaged: found.damaged,
        audit_lines: found.audit_lines,
    })
}

/// What was found in the state.
#[derive(Default)]
struct State {
    opened: u64,
    damaged: u64,
    audit_lines: u64,
    /// Code and words of what is wrong.
    faults: Vec<(&'static str, String)>,
}

impl State {
    /// Counts a body, and names one that cannot be opened.
    fn count(&mut self, body: Result<(), Error>, name: impl FnOnce() -> String) -> Result<(), Error> {
        match body {
            Err(Error::Unreadable(what)) => {
                self.damaged += 1;
                if self.damaged <= MOST_NAMED {
                    self.faults.push(("damaged_body", format!("holds {}: {what} cannot be opened", name())));
                }
                Ok(())
            }
            other => other.map(|()| self.opened += 1),
        }
    }

    fn bodies(&self) -> u64 {
        self.opened + self.damaged
    }

    /// Notes what keeps one part of the state from being looked at; the others are looked at all the same.
    fn note(&mut self, looked: Result<(), Error>) -> Result<(), Error> {
        match looked {
            Err(error) if error.is_damage() => {
                self.faults.push((error.code(), error.to_string()));
                Ok(())
            }
            other => other,
        }
    }
}

fn check_state(readers: &Readers, progress: &impl Fn(u64, u64)) -> Result<State, Error> {
    let mut found = State::default();
    let (mut pages, mut bodies) = (Vec::new(), 0);
    let looked = readers.read(|tx| {
        pages = tx.all("PRAGMA integrity_check", args![], |row| row.text(0))?;
        let count = "SELECT (SELECT count(*) FROM record_versions) + (SELECT count(*) FROM webhooks) \
            + (SELECT count(*) FROM frozen_features)";
        bodies = tx.count(count, args![])?;
        Ok(())
    });
    let wrong = pages.into_iter().filter(|line| line != "ok").take(MOST_FAULTS);
    found.faults.extend(wrong.map(|line| ("damaged_pages", line)));
    found.note(looked)?;
    let tell = |found: &State| progress(found.bodies(), bodies);
    for open in [open_versions, open_webhooks, open_frozen_rows] {
        let looked = open(readers, &mut found, &tell);
        found.note(looked)?;
    }
    let mut broken = None;
    let looked = readers.read(|tx| {
        (found.audit_lines, broken) = audit::check(tx)?;
        Ok(())
    });
    found.note(looked)?;
    let broken = broken.map(|seq| format!("line {seq} of the audit is not the one that was written"));
    found.faults.extend(broken.map(|what| ("audit_broken", what)));
    Ok(found)
}

/// Lets `open` open bodies after the key that it gave last, until there are none.
fn in_pages<K>(
    readers: &Readers,
    found: &mut State,
    tell: &dyn Fn(&State),
    mut after: K,
    open: impl Fn(&Tx<'_>, &mut State, K) -> Result<K, Error>,
) -> Result<(), Error> {
    loop {
        let before = found.bodies();
        after = readers.read(|tx| open(tx, found, after))?;
        tell(found);
        if found.bodies() < before + AT_ONCE {
            return Ok(());
        }
    }
}

fn open_versions(readers: &Readers, found: &mut State, tell: &dyn Fn(&State)) -> Result<(), Error> {
    // Link by link, so that each link's key is unwrapped once.
    let sql = "SELECT link_id, resource, record_key, version, body FROM record_versions \
        WHERE (link_id, resource, record_key, version) > ($1, $2, $3, $4) \
        ORDER BY link_id, resource, record_key, version LIMIT $5";
    let first = (String::new(), String::new(), String::new(), i64::MIN);
    in_pages(readers, found, tell, first, |tx, found, after| {
        let (link_id, resource, record_key, version) = &after;
        let mut last = after.clone();
        tx.each(sql, args![link_id, resource, record_key, *version, AT_ONCE], |row: &Row<'_>| {
            let place = VersionPlace {
                link_id: row.str(0)?,
                resource: row.str(1)?,
                record_key: row.str(2)?,
                version: row.int(3)?,
            };
            let body = row.bytes(4).and_then(|body| place.open(tx, body)).and_then(|body| unpack(&body));
            found.count(body.map(drop), || {
                let VersionPlace { link_id, resource, version, .. } = place;
                format!("a damaged record of {resource}, version {version}, of link {}", log_tag(link_id))
            })?;
            last = (row.text(0)?, row.text(1)?, row.text(2)?, place.version);
            Ok::<_, Error>(())
        })?;
        Ok(last)
    })
}

fn open_webhooks(readers: &Readers, found: &mut State, tell: &dyn Fn(&State)) -> Result<(), Error> {
    let sql = "SELECT link_id, received_at, body, seq, outcome FROM webhooks WHERE seq > $1 ORDER BY seq LIMIT $2";
    in_pages(readers, found, tell, i64::MIN, |tx, found, after| {
        let mut last = after;
        tx.each(sql, args![after, AT_ONCE], |row: &Row<'_>| {
            let link_id = row.opt_text(0)?;
            let place = WebhookPlace { link_id: link_id.as_deref(), received_at: row.int(1)? };
            // One that was understood is JSON; anything else may have come as it is.
            let is_understood = matches!(row.str(4)?, "queued" | "noted");
            let body = row.bytes(2).and_then(|body| place.open(tx, body)).and_then(|body| {
                if is_understood && !body.is_empty() { check_json(&body, "a webhook's body") } else { Ok(()) }
            });
            let seq = row.int(3)?;
            found.count(body, || match &link_id {
                Some(link_id) => format!("the damaged webhook {seq} of link {}", log_tag(link_id)),
                None => format!("the damaged webhook {seq}"),
            })?;
            last = seq;
            Ok::<_, Error>(())
        })?;
        Ok(last)
    })
}

fn open_frozen_rows(readers: &Readers, found: &mut State, tell: &dyn Fn(&State)) -> Result<(), Error> {
    let sql =
        "SELECT link_id, decision_id, body FROM frozen_features WHERE decision_id > $1 ORDER BY decision_id LIMIT $2";
    in_pages(readers, found, tell, String::new(), |tx, found, after| {
        let mut last = after.clone();
        tx.each(sql, args![&after, AT_ONCE], |row: &Row<'_>| {
            let place = FrozenPlace { link_id: row.str(0)?, decision_id: row.str(1)? };
            let body = row.bytes(2).and_then(|body| place.open(tx, body));
            let body = body.and_then(|body| check_json(&body, "a row of frozen features"));
            found.count(body, || format!("the damaged features of a decision on link {}", log_tag(place.link_id)))?;
            last = row.text(1)?;
            Ok::<_, Error>(())
        })?;
        Ok(last)
    })
}

fn check_json(body: &[u8], what: &'static str) -> Result<(), Error> {
    serde_json::from_slice::<IgnoredAny>(body).map(drop).map_err(|_| Error::Unreadable(what))
}

/// Tombstones beside the state at `state` that are not as they were written, or another state's.
pub fn strange_tombstones(readers: &Readers, state: &Path) -> Option<Damage> {
    let file = tombstones::file_of(state);
    let held = readers.read(Tombstones::of).ok()?;
    let error =
        Tombstones::read(&file).and_then(|there| Tombstones::are_of_one(&file, there.as_ref(), held.as_ref())).err()?;
    Some(Damage { file: file.file_name()?.to_string_lossy().into_owned(), code: error.code(), what: error.to_string() })
}

/// A lake that was not published from this state, or from a newer one.
fn strange_state(readers: &Readers, lake: &Path) -> Option<Damage> {
    let lake = Lake::look(lake);
    // Before the state: a snapshot that comes in between is none that it does not know.
    let current = lake.current();
    let own = readers.read(|tx| OwnLake::of(tx, &lake)).ok()?;
    let agreed = current.map_or_else(|| own.has_published(&lake), |current| current.agrees_with(&own));
    let error = agreed.err()?;
    Some(Damage { file: "current".to_owned(), code: error.code(), what: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use secrecy::SecretString;

    use super::*;
    use crate::store::Store;

    const LINK: &str = "00000000-0000-4000-8000-000000000001";

    fn settings(path: &Path) -> config::State {
        let key = SecretString::from("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned());
        config::State { path: path.to_owned(), encryption_key: Some(key), encryption_key_previous: None }
    }

    /// Opens the state once whoever had it has let go of it.
    fn open(state: &config::State) -> Store {
        loop {
            match Store::configured(state) {
                Err(Error::Held { .. }) => std::thread::yield_now(),
                store => return store.unwrap(),
            }
        }
    }

    /// Keeps so many records and webhooks of one link, and one row of features; then runs `damage`.
    fn kept(state: &config::State, count: i64, damage: &'static str) {
        let store = open(state);
        let keep = move |tx: &Tx<'_>| {
            let packed = zstd::encode_all(&b"{}"[..], 1).unwrap();
            for version in 1..=count {
                let place = VersionPlace { link_id: LINK, resource: "employments", record_key: "k", version };
                tx.execute(
                    "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, known_from, \
                     started_at, fetched_at, body) VALUES ($1, 'employments', 'k', $2, 0, 'r', $2, $2, $2, $3)",
                    args![LINK, version, &*place.seal(tx, &packed)?],
                )?;
                let place = WebhookPlace { link_id: Some(LINK), received_at: version };
                tx.execute(
                    "INSERT INTO webhooks (received_at, link_id, outcome, body) VALUES ($1, $2, 'queued', $3)",
                    args![version, LINK, &*place.seal(tx, b"{}")?],
                )?;
            }
            let place = FrozenPlace { link_id: LINK, decision_id: "d" };
            tx.execute(
                "INSERT INTO frozen_features (decision_id, link_id, as_of_date, pit_mode, frozen_at, body) \
                 VALUES ('d', $1, '2026-01-01', 'strict', 0, $2)",
                args![LINK, &*place.seal(tx, b"{}")?],
            )?;
            tx.execute(damage, args![]).map(drop)
        };
        store.write_blocking(keep).unwrap();
    }

    /// How many are damaged, and the words of those that are named.
    fn damage(state: &config::State) -> (Report, Vec<String>) {
        let told = Mutex::new((0, 0));
        let report = check(state, &state.path.with_file_name("lake"), |done, total| {
            *told.lock().unwrap() = (done, total);
        });
        let report = report.unwrap();
        let looked = report.bodies_opened + report.bodies_damaged;
        assert_eq!(*told.lock().unwrap(), (looked, looked), "{report:?}");
        let words = report.lake.damage.iter().map(|damage| format!("{}: {}", damage.code, damage.what)).collect();
        (report, words)
    }

    #[test]
    fn the_oldest_body_of_many_is_opened_too_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = settings(&folder.path().join("state.db"));
        let flip = "UPDATE record_versions SET body = CAST(substr(body, 1, length(body) - 1) || X'00' AS BLOB) WHERE version = 1";
        kept(&state, 2_500, flip);
        let (report, words) = damage(&state);
        assert_eq!((report.ok, report.bodies_opened, report.bodies_damaged), (false, 5_000, 1));
        let tag = log_tag(LINK);
        assert_eq!(
            words,
            [format!(
                "damaged_body: holds a damaged record of employments, version 1, of link {tag}: an encrypted body cannot be opened"
            )]
        );
        let store = open(&state);
        let more = |tx: &Tx<'_>| {
            tx.execute("DELETE FROM record_versions WHERE version = 1", args![])?;
            tx.execute("UPDATE webhooks SET body = 'no bytes' WHERE seq = 3", args![])?;
            tx.execute("UPDATE frozen_features SET body = X'01'", args![])
        };
        store.write_blocking(more).unwrap();
        let (report, words) = damage(&state);
        assert_eq!((report.bodies_opened, report.bodies_damaged, report.damaged()), (4_998, 2, 2));
        assert!(words[0].contains(&format!("the damaged webhook 3 of link {tag}")), "{words:?}");
        assert!(words[1].contains(&format!("a decision on link {tag}")), "{words:?}");
    }

    #[test]
    fn of_very_many_damaged_bodies_a_hundred_are_named_and_all_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let state = settings(&folder.path().join("state.db"));
        kept(&state, 300, "UPDATE record_versions SET body = X'01'");
        let (report, words) = damage(&state);
        assert_eq!((report.bodies_opened, report.bodies_damaged, words.len()), (301, 300, 100));
        assert_eq!((report.damaged(), report.unnamed()), (300, 200));
    }

    #[test]
    fn a_state_whose_key_is_not_given_is_refused_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = settings(&folder.path().join("state.db"));
        kept(&state, 1, "DELETE FROM meta WHERE name = 'none'");
        let keyless = config::State { encryption_key: None, ..settings(&state.path) };
        let error = check(&keyless, &folder.path().join("lake"), |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("state.encryption_key is empty"), "{error}");
    }
}
