//! The tracked links: what Belvo says of them, and whether their data may be asked for.
//!
//! *Takes* sightings in webhooks, failures of fetches, and Belvo's link objects. *Gives* the rows of the table `links`.
//! *Promises* that a link which needs its user, or which Belvo does not know any more, is paused: no job asks for its
//! data until Belvo says that it is valid or sends news of it, while its rows stay and an operator's order is still
//! tried once; that Belvo's answer to a question from before a webhook does not take back what the webhook said; and
//! that a link object which says nothing new changes nothing that is published. *Not here*: the records of links.

use std::time::Duration;

use crate::backoff::doubled;
use crate::belvo::links::LinkObject;
use crate::belvo::{Code, Decision, Failure};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::queue::{self, Priority, Trigger};
use crate::resources::{self, Resource};
use crate::store::{Error, Tx, args};
use crate::tombstones;

mod directory;
pub mod freshness;
mod lookup;
mod reconcile;
pub mod view;

pub use directory::Directory;
pub use lookup::{UNKNOWN_LINKS, alarm, lookups_pending};
pub use reconcile::{SyncError, Synced};

/// What Belvo says of a link that works.
pub const VALID: &str = "valid";

/// What Belvo says of a link whose credentials are no longer good.
pub const INVALID: &str = "invalid";

/// What Belvo says of a link that wants a token of its user.
pub const TOKEN_REQUIRED: &str = "token_required";

/// What Belvo says of a link that its user has not confirmed.
pub const UNCONFIRMED: &str = "unconfirmed";

/// What is said of a link that Belvo does not know, and why it waits.
pub const NOT_FOUND: &str = Code::NotFound.name();

/// What is said of a link that Belvo was asked to delete.
pub const DELETING: &str = "deleting";

/// What is said of a link that was deleted at Belvo.
pub const DELETED: &str = "deleted";

/// Why a link waits that an operator paused. Only an operator ends that: neither Belvo's news nor its `valid` does.
pub const PAUSED: &str = "paused_by_operator";

/// Why a link waits that is about to be erased: it is of a user who was erased after it was made.
const ERASED_BEFORE: &str = "erased_before";

/// Why a link waits of which nothing is asked, whoever asks: it is not there any more, or soon will not be, or an
/// operator paused it.
pub(crate) const SILENT: [&str; 4] = [LINK_DELETED, NOT_FOUND, ERASED_BEFORE, PAUSED];

/// Those reasons as SQL takes them.
pub fn silencing() -> String {
    SILENT.map(|reason| format!("'{reason}'")).join(", ")
}

/// Whether a link with this status is deleted at Belvo, or soon will be.
pub fn is_deleted(status: Option<&str>) -> bool {
    matches!(status, Some(DELETING | DELETED))
}

/// Every status that a link can have, as far as is known.
pub const STATUSES: [&str; 7] = [VALID, INVALID, TOKEN_REQUIRED, UNCONFIRMED, DELETING, DELETED, NOT_FOUND];

/// Why a link waits when its user has to do something.
const NEEDS_USER: &str = Code::LinkNeedsUser.name();

/// Why a link waits that was deleted at Belvo, or will be.
pub const LINK_DELETED: &str = Code::LinkDeleted.name();

/// Data belongs to a visit if its `collected_at` is at most this much before the link's `last_accessed_at`.
pub(crate) const SAME_VISIT: Duration = Duration::from_hours(1);

/// For so long after a fetch found that a link needs its user, a `valid` of Belvo's may be out of date and is not
/// believed.
const FIRST_REST: Duration = Duration::from_mins(1);

/// Unit of the waits of a link that keeps failing although Belvo calls it valid: twice this at first, doubled each
/// time.
const REST: Duration = Duration::from_hours(1);
/// The longest of these waits, in units of [`REST`].
const LONGEST_REST: u32 = 7 * 24;

/// How long Belvo keeps data that is not updated, unless the link says otherwise.
const USUAL_STALE_IN: Duration = Duration::from_hours(365 * 24);

/// Notes that a webhook named the link, inside the caller's transaction, and gives why the link is paused, if it is. An
/// unknown link is tracked from now on, and is looked up at Belvo once.
///
/// # Errors
/// [`Error::Database`].
pub fn note_webhook(
    tx: &Tx<'_>,
    link_id: &LinkId,
    external_id: Option<&str>,
    at: Timestamp,
) -> Result<Option<String>, Error> {
    let seq = tx.change()?;
    // Looked at first: RETURNING makes SQLite gather the rows in a table of its own, at twice the cost.
    let known = tx.one("SELECT paused_reason FROM links WHERE link_id = $1", args![link_id], |row| row.opt_text(0))?;
    let Some(paused) = known else {
        tx.execute(
            "INSERT INTO links (link_id, external_id, first_seen_at, last_webhook_at, lookup_due_at, changed_seq) \
             VALUES ($1, $2, $3, $3, $3, $4)",
            args![link_id, external_id, at, seq],
        )?;
        return Ok(None);
    };
    tx.execute(
        "UPDATE links SET last_webhook_at = $3, external_id = coalesce(external_id, $2), changed_seq = $4 WHERE link_id = $1",
        args![link_id, external_id, at, seq],
    )?;
    Ok(paused)
}

/// Notes that Belvo has data of a link that is paused for `reason`, inside the caller's transaction, after
/// [`queue::mark`]. A link that waits for its user works again. One that was deleted is looked up, once, because only a
/// webhook may have said so. Of one that Belvo did not know, the next reconciliation decides: whoever knows the
/// webhook's secret must not make us ask for what is not there.
///
/// # Errors
/// [`Error::Database`].
pub fn note_news(tx: &Tx<'_>, link_id: &LinkId, reason: &str, at: Timestamp) -> Result<(), Error> {
    if reason == LINK_DELETED {
        look_up(tx, link_id, at)?;
    }
    if SILENT.contains(&reason) {
        return hold(tx, link_id, None);
    }
    look_up(tx, link_id, at)?;
    resume(tx, link_id, at)
}

/// Pauses a link because an operator says so, inside the caller's transaction; false when there is no such link, or it
/// was deleted, or is to be erased, or an operator has paused it already. What is wanted of it meanwhile is not lost,
/// but waits for its resume.
///
/// # Errors
/// [`Error::Database`].
pub fn pause_by_operator(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<bool, Error> {
    let paused = tx.execute(
        "UPDATE links SET paused_reason = $2, paused_at = $3 WHERE link_id = $1 \
         AND coalesce(paused_reason, '') NOT IN ($4, $5, $2)",
        args![link_id, PAUSED, at, LINK_DELETED, ERASED_BEFORE],
    )?;
    hold(tx, link_id, None)?;
    Ok(paused > 0)
}

/// Ends what [`pause_by_operator`] began, inside the caller's transaction; false when it had not. A link whose status
/// stops it goes on waiting for that.
///
/// # Errors
/// [`Error::Database`].
pub fn resume_by_operator(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<bool, Error> {
    let sql = "SELECT status FROM links WHERE link_id = $1 AND paused_reason = $2";
    let Some(status) = tx.one(sql, args![link_id, PAUSED], |row| row.opt_text(0))? else { return Ok(false) };
    tx.execute(
        "UPDATE refreshes SET blocked_reason = NULL, \
         due_at = CASE WHEN lease IS NULL AND marks > cleared THEN coalesce(due_at, $2) ELSE due_at END \
         WHERE link_id = $1 AND blocked_reason = $3",
        args![link_id, at, PAUSED],
    )?;
    tx.execute("UPDATE links SET paused_reason = NULL, paused_at = NULL WHERE link_id = $1", args![link_id])?;
    if let Some(reason) = status.as_deref().and_then(stops) {
        pause(tx, link_id, reason, None, at)?;
    }
    Ok(true)
}

/// Tracks a link that an operator names, inside the caller's transaction; what is tracked already stays as it is.
///
/// # Errors
/// [`Error::Database`].
pub fn note_wish(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<(), Error> {
    if tombstones::is_erased(tx, link_id)? {
        return Ok(());
    }
    let seq = tx.change()?;
    tx.execute(
        "INSERT INTO links (link_id, first_seen_at, lookup_due_at, changed_seq) VALUES ($1, $2, $2, $3) \
         ON CONFLICT (link_id) DO NOTHING",
        args![link_id, at, seq],
    )?;
    Ok(())
}

/// Notes a status that a webhook told, inside the caller's transaction. One that stops a link pauses it.
///
/// # Errors
/// [`Error::Database`].
pub fn note_status(tx: &Tx<'_>, link_id: &LinkId, status: &str, at: Timestamp) -> Result<(), Error> {
    set_status(tx, link_id, Some(status), at)?;
    match stops(status) {
        Some(reason) => pause(tx, link_id, reason, None, at),
        None => Ok(()),
    }
}

/// The status of the link, as far as it is known.
///
/// # Errors
/// [`Error::Database`].
pub fn status(tx: &Tx<'_>, link_id: &LinkId) -> Result<Option<String>, Error> {
    let status = tx.one("SELECT status FROM links WHERE link_id = $1", args![link_id], |row| row.opt_text(0))?;
    Ok(status.flatten())
}

/// Notes that Belvo did not accept the request to delete the link, whose status was `before`, inside the caller's
/// transaction. It works, or waits, as before; and one that may be there is looked up, so that Belvo's own word on its
/// status follows.
///
/// # Errors
/// [`Error::Database`].
pub fn note_kept(tx: &Tx<'_>, link_id: &LinkId, before: Option<&str>, at: Timestamp) -> Result<(), Error> {
    set_status(tx, link_id, before, at)?;
    resume(tx, link_id, at)?;
    let reason = before.and_then(stops);
    if !reason.is_some_and(|reason| SILENT.contains(&reason)) {
        look_up(tx, link_id, at)?;
    }
    reason.map_or(Ok(()), |reason| pause(tx, link_id, reason, None, at))
}

/// Notes that a refresh of the link failed with `failure`, inside the transaction that settles it. A failure that its
/// user has to mend pauses the link. If Belvo says that it does not know the link, that is first checked by a look-up.
/// If Belvo refuses, the failure is only written down with the link.
///
/// # Errors
/// [`Error::Database`].
pub fn note_failure(tx: &Tx<'_>, link_id: &LinkId, failure: &Failure, at: Timestamp) -> Result<(), Error> {
    let detail =
        [failure.belvo_code, failure.request_id.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    if failure.kind == Decision::AskUser {
        let status = match failure.belvo_code {
            Some("token_required") => TOKEN_REQUIRED,
            Some("unconfirmed_link") => UNCONFIRMED,
            _ => INVALID,
        };
        set_status(tx, link_id, Some(status), at)?;
        tx.execute("UPDATE links SET pauses = pauses + 1 WHERE link_id = $1", args![link_id])?;
        return pause(tx, link_id, failure.code.name(), Some(&detail), at);
    }
    let lookup = (failure.kind == Decision::Gone).then_some(at);
    tx.execute(
        "UPDATE links SET last_error_code = $2, last_error_at = $3, last_error_detail = $4, \
         lookup_due_at = coalesce(lookup_due_at, $5) WHERE link_id = $1 AND paused_reason IS NULL",
        args![link_id, failure.code.name(), at, detail.as_str(), lookup],
    )?;
    Ok(())
}

/// Notes a complete list of the link's `resource`, inside the transaction that settles its refresh. Unless another
/// fetch is wanted, the webhook's count is forgotten, because it is about the list that the webhook asked for and not
/// about later ones; but a count of 0 stays as long as lists are empty, because a second empty one has to agree. If the
/// link is paused, it is looked up again.
///
/// # Errors
/// [`Error::Database`].
pub fn note_listed(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    is_empty: bool,
    at: Timestamp,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE refreshes SET webhook_count = NULL WHERE link_id = $1 AND resource = $2 AND webhook_count IS NOT NULL \
         AND marks = cleared AND NOT ($3 = 1 AND webhook_count = 0)",
        args![link_id, resource.name, is_empty],
    )?;
    let standing = tx.one(
        "SELECT paused_reason IS NOT NULL, last_error_code IS NOT NULL OR pauses > 0 FROM links WHERE link_id = $1",
        args![link_id],
        |row| Ok((row.int(0)? == 1, row.int(1)? == 1)),
    )?;
    match standing {
        Some((true, _)) => {
            tx.execute(
                "UPDATE links SET pauses = 0, lookup_due_at = coalesce(lookup_due_at, $2) WHERE link_id = $1",
                args![link_id, at],
            )?;
            hold(tx, link_id, Some(resource))
        }
        Some((false, true)) => {
            let sql = "UPDATE links SET pauses = 0, last_error_code = NULL, last_error_at = NULL, last_error_detail = NULL \
                 WHERE link_id = $1";
            tx.execute(sql, args![link_id]).map(drop)
        }
        _ => Ok(()),
    }
}

/// Has Belvo asked about a tracked link at `at`, unless that is to be done already, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn look_up(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<(), Error> {
    let ask = "UPDATE links SET lookup_due_at = coalesce(lookup_due_at, $2) WHERE link_id = $1";
    tx.execute(ask, args![link_id, at]).map(drop)
}

/// Takes back that Belvo is to be asked about the link, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn need_no_look_up(tx: &Tx<'_>, link_id: &LinkId) -> Result<(), Error> {
    tx.execute("UPDATE links SET lookup_due_at = NULL WHERE link_id = $1", args![link_id]).map(drop)
}

/// Whether the link is tracked.
///
/// # Errors
/// [`Error::Database`].
pub fn is_tracked(tx: &Tx<'_>, link_id: &LinkId) -> Result<bool, Error> {
    Ok(tx.one("SELECT 1 FROM links WHERE link_id = $1", args![link_id], |_| Ok(()))?.is_some())
}

/// The ids of the tracked links of a user, by our own id of that user.
///
/// # Errors
/// [`Error::Database`].
pub fn of_external_id(tx: &Tx<'_>, external_id: &str) -> Result<Vec<LinkId>, Error> {
    tx.all("SELECT link_id FROM links WHERE external_id = $1 ORDER BY link_id", args![external_id], |row| {
        row.link_id(0)
    })
}

/// The ids of all tracked links.
///
/// # Errors
/// [`Error::Database`].
pub fn all(tx: &Tx<'_>) -> Result<Vec<LinkId>, Error> {
    tx.all("SELECT link_id FROM links", args![], |row| row.link_id(0))
}

/// How long Belvo keeps the data of a link without an update, by the link's `stale_in`: `365d` and the like, one to
/// four digits. For any other text it is a year.
pub fn keeps_for(stale_in: Option<&str>) -> Duration {
    fn days(text: &str) -> Option<u64> {
        let digits = text.strip_suffix('d')?;
        let are_days = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        are_days.then_some(digits)?.parse().ok().filter(|days| *days > 0)
    }

    stale_in.and_then(days).map_or(USUAL_STALE_IN, |days| Duration::from_hours(24 * days))
}

/// Whether an object told something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The link was not tracked before.
    New,
    /// Something differs from what was known.
    Changed,
    /// Nothing does.
    Same,
}

/// What is known of a link.
struct Known {
    object: LinkObject,
    status_at: Option<Timestamp>,
    paused_reason: Option<String>,
    paused_at: Option<Timestamp>,
    pauses: u32,
}

/// When Belvo was asked about links, and when what it said is kept.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// Before the request: what came meanwhile is newer than the answer.
    asked_at: Timestamp,
    /// In the transaction: what was recorded before it, such as a run of features, did not know a link that is new in
    /// it.
    kept_at: Timestamp,
}

/// Keeps what Belvo said of a link, inside the caller's transaction.
fn keep(tx: &Tx<'_>, link: &LinkObject, told: Told, sync: Option<i64>) -> Result<News, Error> {
    let asked_at = told.asked_at;
    let is_from_before = is_from_before_erasure(tx, link)?;
    let Some(known) = known(tx, &link.id)? else {
        if is_from_before {
            tombstones::bury(tx, tombstones::Kind::Link, link.id.as_str(), asked_at)?;
        }
        if tombstones::is_erased(tx, &link.id)? {
            return Ok(News::Same);
        }
        add(tx, link, told, sync)?;
        return Ok(News::New);
    };
    tx.execute(
        "UPDATE links SET looked_up_at = $2, lookup_due_at = NULL, lookup_attempts = 0, \
         sync_number = coalesce($3, sync_number) WHERE link_id = $1",
        args![&link.id, asked_at, sync],
    )?;
    queue::confirm(tx, &link.id)?;
    if is_from_before {
        // A webhook told of it first, so that something may be held of it.
        pause(tx, &link.id, ERASED_BEFORE, None, asked_at)?;
        return Ok(News::Same);
    }
    let mut link = link.clone();
    link.external_id = link.external_id.or_else(|| known.object.external_id.clone());
    // Belvo shows a link until it has deleted it; the end of that is seen to elsewhere.
    let is_going = known.object.status.as_deref() == Some(DELETING);
    let may_tell = !is_going && known.status_at.is_none_or(|told_at| told_at <= asked_at);
    let resumes = link.status.as_deref() == Some(VALID) && known.may_resume(asked_at);
    if link.status.is_none() || !may_tell || (link.status.as_deref() == Some(VALID) && !resumes) {
        link.status.clone_from(&known.object.status);
    }
    let news = if link == known.object { News::Same } else { News::Changed };
    if news == News::Changed {
        update(tx, &link)?;
    }
    if link.status != known.object.status {
        tx.execute("UPDATE links SET status_at = $2 WHERE link_id = $1", args![&link.id, asked_at])?;
    }
    let status = link.status.as_deref();
    if status == Some(VALID) {
        if known.paused_reason.is_some() {
            resume(tx, &link.id, asked_at)?;
        }
        if known.object.status.as_deref() != status {
            ask_again_whether_empty(tx, &link.id, asked_at)?;
        }
    } else if let Some(reason) = status.and_then(stops)
        && known.paused_reason.is_none()
    {
        pause(tx, &link.id, reason, None, asked_at)?;
    }
    // The first time of a visit that Belvo tells of a link need not be that of a new visit.
    let was_told = sync.is_some() || known.object.last_accessed_at.is_some();
    if was_told && link.last_accessed_at > known.object.last_accessed_at {
        mark_unseen_visit(tx, &link.id, link.last_accessed_at, asked_at)?;
    }
    Ok(news)
}

/// Whether the link was made by a user of whom everything was erased since: it is none of a new consent.
fn is_from_before_erasure(tx: &Tx<'_>, link: &LinkObject) -> Result<bool, Error> {
    let (Some(external_id), Some(created_at)) = (&link.external_id, link.created_at) else { return Ok(false) };
    if tombstones::user_erased_at(tx, external_id)?.is_none_or(|erased_at| created_at > erased_at) {
        return Ok(false);
    }
    // Whoever has opened the widget since is back, even if Belvo's clock is behind ours.
    let again = "SELECT 1 FROM widget_sessions WHERE external_id = $1";
    Ok(tx.one(again, args![external_id], |_| Ok(()))?.is_none())
}

/// The links that are paused for one reason. It is asked every few seconds, and walks paused links alone.
const OF_REASON: &str = "SELECT link_id FROM links WHERE paused_reason = $1";

/// The links that are to be erased because everything of their users was, before Belvo told of them.
///
/// # Errors
/// [`Error::Database`].
pub fn erased_before(tx: &Tx<'_>) -> Result<Vec<LinkId>, Error> {
    tx.all(OF_REASON, args![ERASED_BEFORE], |row| row.link_id(0))
}

impl Known {
    /// Whether a `valid` of Belvo's ends the pause. A link that it calls valid while each fetch finds that it is not is
    /// tried less and less often.
    fn may_resume(&self, asked_at: Timestamp) -> bool {
        let rest = match self.pauses {
            0 => Duration::ZERO,
            1 => FIRST_REST,
            pauses => doubled(REST, pauses - 1, REST * LONGEST_REST),
        };
        self.paused_reason.is_none() || self.paused_at.is_none_or(|paused_at| paused_at + rest <= asked_at)
    }
}

fn known(tx: &Tx<'_>, link_id: &LinkId) -> Result<Option<Known>, Error> {
    tx.one(
        "SELECT institution, access_mode, status, refresh_rate, credentials_storage, stale_in, external_id, fetch_resources, \
         created_at, last_accessed_at, status_at, paused_reason, paused_at, pauses FROM links WHERE link_id = $1",
        args![link_id],
        |row| {
            Ok(Known {
                object: LinkObject {
                    id: link_id.clone(),
                    institution: row.opt_text(0)?,
                    access_mode: row.opt_text(1)?,
                    status: row.opt_text(2)?,
                    refresh_rate: row.opt_text(3)?,
                    credentials_storage: row.opt_text(4)?,
                    stale_in: row.opt_text(5)?,
                    external_id: row.opt_text(6)?,
                    fetch_resources: row.opt_text(7)?.and_then(|text| serde_json::from_str(&text).ok()),
                    created_at: row.opt_at(8)?,
                    last_accessed_at: row.opt_at(9)?,
                },
                status_at: row.opt_at(10)?,
                paused_reason: row.opt_text(11)?,
                paused_at: row.opt_at(12)?,
                pauses: u32::try_from(row.int(13)?).unwrap_or(u32::MAX),
            })
        },
    )
}

/// Tracks a link that Belvo told of. A link that is known from Belvo's whole list alone is asked for once, unless it is
/// recurrent and in order: no webhook or job would ask for it, and Belvo may hold data of it even if its user has to
/// act.
fn add(tx: &Tx<'_>, link: &LinkObject, told: Told, sync: Option<i64>) -> Result<(), Error> {
    let Told { asked_at, kept_at } = told;
    tx.execute(
        "INSERT INTO links (link_id, first_seen_at, looked_up_at, status_at, sync_number, changed_seq) \
         VALUES ($1, $2, $3, $3, $4, 0)",
        args![&link.id, kept_at, asked_at, sync],
    )?;
    update(tx, link)?;
    let stopped_by = link.status.as_deref().and_then(stops);
    if sync.is_some() && (stopped_by.is_some() || link.access_mode.as_deref() != Some("recurrent")) {
        let trigger = if stopped_by.is_some() { Trigger::Operator } else { Trigger::Schedule };
        for resource in freshness::read(link.fetch_resources.as_deref()) {
            queue::mark(tx, &link.id, resource, trigger, asked_at)?;
        }
    }
    stopped_by.map_or(Ok(()), |reason| pause(tx, &link.id, reason, None, asked_at))
}

fn update(tx: &Tx<'_>, link: &LinkObject) -> Result<(), Error> {
    let resources = link.fetch_resources.as_ref().map(|names| serde_json::Value::from(names.clone()).to_string());
    let seq = tx.change()?;
    tx.execute(
        "UPDATE links SET external_id = $2, institution = $3, access_mode = $4, status = $5, refresh_rate = $6, \
         credentials_storage = $7, stale_in = $8, fetch_resources = $9, created_at = $10, last_accessed_at = $11, \
         changed_seq = $12 WHERE link_id = $1",
        args![
            &link.id,
            link.external_id.as_deref(),
            link.institution.as_deref(),
            link.access_mode.as_deref(),
            link.status.as_deref(),
            link.refresh_rate.as_deref(),
            link.credentials_storage.as_deref(),
            link.stale_in.as_deref(),
            resources.as_deref(),
            link.created_at,
            link.last_accessed_at,
            seq
        ],
    )?;
    Ok(())
}

fn set_status(tx: &Tx<'_>, link_id: &LinkId, status: Option<&str>, at: Timestamp) -> Result<(), Error> {
    let changed = tx.execute(
        "UPDATE links SET status = $2, status_at = $3 WHERE link_id = $1 AND status IS DISTINCT FROM $2",
        args![link_id, status, at],
    )?;
    if changed > 0 {
        let seq = tx.change()?;
        tx.execute("UPDATE links SET changed_seq = $2 WHERE link_id = $1", args![link_id, seq])?;
    } else {
        tx.execute("UPDATE links SET status_at = $2 WHERE link_id = $1", args![link_id, at])?;
    }
    Ok(())
}

/// Why a link with this status waits; `None` when it does not.
fn stops(status: &str) -> Option<&'static str> {
    match status {
        INVALID | UNCONFIRMED | TOKEN_REQUIRED => Some(NEEDS_USER),
        DELETED | DELETING => Some(LINK_DELETED),
        NOT_FOUND => Some(NOT_FOUND),
        _ => None,
    }
}

/// Pauses a link, unless an operator has. One that is to be erased goes on waiting for that, whoever has paused it, and
/// whatever is heard of it meanwhile.
fn pause(tx: &Tx<'_>, link_id: &LinkId, reason: &str, detail: Option<&str>, at: Timestamp) -> Result<(), Error> {
    tx.execute(
        "UPDATE links SET paused_reason = $2, paused_at = $3, last_error_code = $2, last_error_at = $3, \
         last_error_detail = $4 WHERE link_id = $1 AND ($2 = $6 OR coalesce(paused_reason, '') NOT IN ($5, $6))",
        args![link_id, reason, at, detail, PAUSED, ERASED_BEFORE],
    )?;
    hold(tx, link_id, None)
}

/// Whether Belvo is asked for the link's data: it is tracked, and not paused.
///
/// # Errors
/// [`Error::Database`].
pub fn is_asked_for(tx: &Tx<'_>, link_id: &LinkId) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM links WHERE link_id = $1 AND paused_reason IS NULL";
    Ok(tx.one(sql, args![link_id], |_| Ok(()))?.is_some())
}

/// Blocks the refreshes of a paused link, or the one of `resource`, inside the caller's transaction; those of a link
/// that is not paused stay as they are. What a webhook or an operator asked for is still tried, unless the link is gone
/// or an operator paused it: Belvo may hold data of a link whose user has to do something.
///
/// # Errors
/// [`Error::Database`].
pub fn hold(tx: &Tx<'_>, link_id: &LinkId, resource: Option<&Resource>) -> Result<(), Error> {
    let sql = format!(
        "UPDATE refreshes SET blocked_reason = links.paused_reason, due_at = CASE WHEN refreshes.priority NOT IN ($3, $4) \
         AND links.paused_reason NOT IN ({}) THEN refreshes.due_at ELSE NULL END \
         FROM links WHERE links.link_id = refreshes.link_id AND refreshes.link_id = $1 AND links.paused_reason IS NOT NULL \
         AND (CAST($2 AS TEXT) IS NULL OR refreshes.resource = $2)",
        silencing()
    );
    let name = resource.map(|resource| resource.name);
    tx.execute(&sql, args![link_id, name, Priority::Schedule.number(), Priority::Confirm.number()]).map(drop)
}

/// The same for every paused link. A start makes everything due again that was under way when the last process ended,
/// also what belongs to paused links.
///
/// # Errors
/// [`Error::Database`].
pub fn hold_all(tx: &Tx<'_>) -> Result<(), Error> {
    let due = "SELECT DISTINCT f.link_id FROM refreshes f JOIN links l ON l.link_id = f.link_id \
               WHERE l.paused_reason IS NOT NULL AND f.due_at IS NOT NULL";
    let links = tx.all(due, args![], |row| row.link_id(0))?;
    links.iter().try_for_each(|link_id| hold(tx, link_id, None))
}

/// Ends a pause, unless it is an operator's: what was wanted meanwhile is due at once.
fn resume(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<(), Error> {
    let is_held = "SELECT 1 FROM links WHERE link_id = $1 AND paused_reason = $2";
    if tx.one(is_held, args![link_id, PAUSED], |_| Ok(()))?.is_some() {
        return Ok(());
    }
    tx.execute(
        "UPDATE refreshes SET blocked_reason = NULL, attempts = 0, \
         due_at = CASE WHEN lease IS NULL AND marks > cleared THEN coalesce(due_at, $2) ELSE due_at END \
         WHERE link_id = $1 AND blocked_reason = (SELECT last_error_code FROM links WHERE links.link_id = $1)",
        args![link_id, at],
    )?;
    tx.execute(
        "UPDATE links SET paused_reason = NULL, paused_at = NULL, last_error_code = NULL, last_error_at = NULL, \
         last_error_detail = NULL WHERE link_id = $1",
        args![link_id],
    )?;
    Ok(())
}

/// Asks again for resources whose list was empty, as a webhook had counted, while the link was not in order: only now
/// that it is in order may a second empty list confirm that rows are gone.
fn ask_again_whether_empty(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<(), Error> {
    for resource in resources::ALL {
        let is_doubtful = tx.one(
            "SELECT 1 FROM refreshes WHERE link_id = $1 AND resource = $2 AND webhook_count = 0 AND \
             (SELECT item_count FROM link_snapshots s WHERE s.link_id = $1 AND s.resource = $2 ORDER BY s.fetched_at DESC LIMIT 1) = 0 \
             AND EXISTS (SELECT 1 FROM records r WHERE r.link_id = $1 AND r.resource = $2)",
            args![link_id, resource.name],
            |_| Ok(()),
        )?;
        if is_doubtful.is_some() {
            queue::mark(tx, link_id, resource, Trigger::Confirm, at)?;
            hold(tx, link_id, Some(resource))?;
        }
    }
    Ok(())
}

/// Belvo was at the institution since, and no webhook made us ask: what was listed or read before that visit is asked
/// for again. A second look that was booked for later would come too late.
fn mark_unseen_visit(tx: &Tx<'_>, link_id: &LinkId, visited_at: Option<Timestamp>, at: Timestamp) -> Result<(), Error> {
    let Some(visited_at) = visited_at else { return Ok(()) };
    let unseen = tx.all(
        "SELECT resource FROM refreshes WHERE link_id = $1 AND blocked_reason IS NULL AND lease IS NULL \
         AND (due_at IS NULL OR priority = $4) AND last_fetched_at IS NOT NULL \
         AND (last_fetched_at < $2 OR last_collected_at IS NULL OR last_collected_at < $3)",
        args![link_id, visited_at, visited_at - SAME_VISIT, Priority::Confirm.number()],
        |row| row.text(0),
    )?;
    for resource in unseen.iter().filter_map(|name| Resource::by_name(name)) {
        queue::mark(tx, link_id, resource, Trigger::Schedule, at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::owners;
    use crate::store::Store;

    #[tokio::test]
    async fn links_that_are_to_be_erased_are_found_without_reading_every_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let plan = format!("EXPLAIN QUERY PLAN {OF_REASON}");
        let plan = store.read(move |tx| tx.all(&plan, args![ERASED_BEFORE], |row| row.text(3))).await.unwrap();
        assert!(plan.iter().all(|step| step.contains("links_paused")), "{plan:?}");
    }

    #[tokio::test]
    async fn a_link_that_is_to_be_erased_goes_on_waiting_for_that_whatever_is_heard_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = Timestamp::from_micros;
        let id: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
        let wait = move |tx: &Tx<'_>| {
            note_wish(tx, &id, at(1))?;
            // An operator had paused it before Belvo told whose it is.
            assert!(pause_by_operator(tx, &id, at(2))?);
            pause(tx, &id, ERASED_BEFORE, None, at(3))?;
            for status in [INVALID, DELETED, VALID] {
                note_status(tx, &id, status, at(4))?;
                assert_eq!(erased_before(tx)?, std::slice::from_ref(&id), "{status}");
            }
            assert!(!pause_by_operator(tx, &id, at(5))?);
            assert!(!resume_by_operator(tx, &id, at(6))?);
            erased_before(tx)
        };
        assert_eq!(store.write(wait).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_visit_that_nobody_told_of_does_not_wait_for_a_second_look_that_was_booked() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = Timestamp::from_micros;
        let id: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
        let visit = move |tx: &Tx<'_>| {
            note_wish(tx, &id, at(1))?;
            queue::mark(tx, &id, &owners::RESOURCE, Trigger::Confirm, at(900))?;
            tx.execute("UPDATE refreshes SET last_fetched_at = 1", args![])?;
            mark_unseen_visit(tx, &id, Some(at(100)), at(200))?;
            queue::State::of(tx, &id, &owners::RESOURCE)
        };
        let state = store.write(visit).await.unwrap().unwrap();
        assert_eq!(state.due_at, Some(at(200)));
    }
}
