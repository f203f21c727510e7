//! Whether everything that is kept is as it was written: the state's pages, bodies and audit, and every published file.
//!
//! *Takes* the state, also while a daemon writes it, and the lake. *Gives* what is damaged, file by file. *Promises* to write
//! nothing.

use std::path::Path;

use serde::Serialize;

use crate::audit;
use crate::config;
use crate::publish::integrity::{self, Damage};
use crate::publish::{Held, Lake};
use crate::records::unpack;
use crate::store::{Error, FrozenPlace, Readers, Row, VersionPlace, WebhookPlace, args};
use crate::tombstones::{self, Tombstones};

/// Bodies of each kind that are opened; the database checks every page, and a body is checked whenever it is read.
const SAMPLE: i64 = 500;

/// Faults that SQLite lists before it stops looking.
const MOST_FAULTS: usize = 20;

/// What was looked at, and what is wrong.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The lake.
    #[serde(flatten)]
    pub lake: integrity::Verified,
    /// Bodies of the state that were opened.
    pub bodies_opened: u64,
    /// Lines of the audit.
    pub audit_lines: u64,
}

/// Checks `state`, and the lake at `lake_path`. Blocks.
///
/// # Errors
/// Those of [`Readers`], when the state cannot be looked at at all, and of [`integrity::check`]; damage is in the report.
pub fn check(state: &config::State, lake_path: &Path) -> anyhow::Result<Report> {
    let readers = Readers::configured(state);
    let found = check_state(&readers)?;
    let mut lake = integrity::check(lake_path)?;
    let name = state.path.file_name().map_or(Path::new("state"), Path::new).display().to_string();
    let faults = found.faults.into_iter().map(|(code, what)| Damage { file: name.clone(), code, what });
    lake.damage.splice(0..0, faults);
    lake.damage.extend(strange_state(&readers, lake_path));
    lake.damage.extend(strange_tombstones(&readers, &state.path));
    Ok(Report { ok: lake.damage.is_empty(), lake, bodies_opened: found.bodies, audit_lines: found.audit_lines })
}

/// What was found in the state.
#[derive(Default)]
struct State {
    bodies: u64,
    audit_lines: u64,
    /// Code and words of what is wrong.
    faults: Vec<(&'static str, String)>,
}

fn check_state(readers: &Readers) -> Result<State, Error> {
    let mut verified = State::default();
    let looked: Result<(), Error> = readers.read(|tx| {
        let pages = tx.all("PRAGMA integrity_check", args![], |row| row.text(0))?;
        verified.faults.extend(
            pages.into_iter().filter(|line| line != "ok").take(MOST_FAULTS).map(|line| ("damaged_pages", line)),
        );
        let mut opened = |body: Result<(), Error>| match body {
            Err(Error::Unreadable(what)) => {
                verified.faults.push(("damaged_body", format!("{what} cannot be opened")));
                Ok(())
            }
            other => other.map(|()| verified.bodies += 1),
        };
        tx.each(
            "SELECT link_id, resource, record_key, version, body FROM record_versions ORDER BY fetched_at DESC LIMIT $1",
            args![SAMPLE],
            |row: &Row<'_>| {
                let place = VersionPlace {
                    link_id: row.str(0)?,
                    resource: row.str(1)?,
                    record_key: row.str(2)?,
                    version: row.int(3)?,
                };
                let body = place.open(tx, row.bytes(4)?).and_then(|body| unpack(&body));
                opened(body.map(drop))
            },
        )?;
        tx.each(
            "SELECT link_id, received_at, body FROM webhooks ORDER BY seq DESC LIMIT $1",
            args![SAMPLE],
            |row: &Row<'_>| {
                let link_id = row.opt_text(0)?;
                let place = WebhookPlace { link_id: link_id.as_deref(), received_at: row.int(1)? };
                opened(place.open(tx, row.bytes(2)?).map(drop))
            },
        )?;
        tx.each(
            "SELECT link_id, decision_id, body FROM frozen_features ORDER BY frozen_at DESC LIMIT $1",
            args![SAMPLE],
            |row: &Row<'_>| {
                let place = FrozenPlace { link_id: row.str(0)?, decision_id: row.str(1)? };
                opened(place.open(tx, row.bytes(2)?).map(drop))
            },
        )?;
        let (lines, broken) = audit::check(tx)?;
        verified.audit_lines = lines;
        verified.faults.extend(
            broken.map(|seq| ("audit_broken", format!("line {seq} of the audit is not the one that was written"))),
        );
        Ok(())
    });
    match looked {
        Err(error) if matches!(error.code(), "state_damaged" | "state_unreadable") => {
            verified.faults.push((error.code(), error.to_string()));
            Ok(verified)
        }
        other => other.map(|()| verified),
    }
}

/// Tombstones beside the state that are not as they were written, or another state's.
fn strange_tombstones(readers: &Readers, state: &Path) -> Option<Damage> {
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
    let held = readers.read(|tx| Held::of(tx, &lake)).ok()?;
    let agreed = current.map_or_else(|| held.has_published(&lake), |current| current.agrees_with(&held));
    let error = agreed.err()?;
    Some(Damage { file: "current".to_owned(), code: error.code(), what: error.to_string() })
}
