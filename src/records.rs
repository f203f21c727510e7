//! A complete list → new versions of its records: identity, difference, absence.
//!
//! *Takes* the records of one list, as they came. *Gives* versions in the record store, inside the caller's transaction,
//! so that they, the snapshot row and the queue entry are kept together or not at all. *Promises* that a record keeps its
//! key when Belvo gives it another id or corrects its employer or start; that the order of a list or of its arrays changes
//! nothing; that a list which brings nothing new adds no version; and that an older answer never replaces a newer one.
//! *Not here*: what the content means to analysts (`flatten`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::belvo::LinkId;
use crate::clock::Timestamp;
use crate::json::{Fields, Reader};
use crate::resources::Resource;
use crate::sensitive::hex;
use crate::store::{Error, Tx, VersionPlace, args};

mod body;
mod spelling;

pub use body::unpack;

use body::pack;

/// Fields that Belvo renews without the record having changed.
const VOLATILE: [&str; 3] = ["id", "created_at", "collected_at"];

/// An empty list of a link that is not in order is asked for again so much later.
const LINK_RECOVERS: Duration = Duration::from_hours(24);

/// A complete list of a link's resource, ready to be kept.
pub struct Listing {
    /// When the list was begun.
    pub started_at: Timestamp,
    /// When it was complete.
    pub fetched_at: Timestamp,
    /// Its records.
    pub records: Vec<Record>,
    /// What they hold that the schema does not know.
    pub drift: Drift,
}

/// What the records of a list hold that the schema does not know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Drift {
    /// Fields without a column.
    pub unknown_fields: usize,
    /// Values that a column's list of values does not have.
    pub unknown_values: usize,
    /// Records that cannot be flattened.
    pub rejected: usize,
}

impl Drift {
    /// What the counters in `meta` begin with; the resource and the kind follow.
    pub const COUNTERS: &str = "drift ";

    /// Adds these to what was counted since the state was made, for `status`.
    fn note(&self, tx: &Tx<'_>, resource: &Resource) -> Result<(), Error> {
        let kinds = [("fields", self.unknown_fields), ("values", self.unknown_values), ("rejected", self.rejected)];
        for (kind, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
            tx.execute(
                "INSERT INTO meta (name, value) VALUES ($1, CAST($2 AS TEXT)) \
                 ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + $2 AS TEXT)",
                args![&format!("{}{} {kind}", Self::COUNTERS, resource.name), i64::try_from(count).unwrap_or(i64::MAX)],
            )?;
        }
        Ok(())
    }
}

/// When a complete list was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it was complete.
    pub fetched_at: Timestamp,
}

/// One record as it came.
pub struct Record {
    /// Belvo's id; a made-up one that begins with [`NO_ID`] when it has none.
    id: String,
    created_at: Option<Timestamp>,
    collected_at: Option<Timestamp>,
    /// See [`Resource::likeness`].
    likeness: Option<String>,
    /// The record's text without volatile fields, in an order that does not depend on Belvo's.
    content: String,
    hash: [u8; 32],
    body: Vec<u8>,
}

/// First character of an id that this program made up.
pub const NO_ID: char = '?';

/// A record that is not of the link that was asked for. It is published under neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Belvo listed a record of another link")]
pub struct Foreign;

impl Record {
    /// Reads what identity needs from a record's JSON. A record that cannot be read is kept all the same.
    ///
    /// # Errors
    /// [`Foreign`] when it says that it belongs to another link than `link_id`.
    pub fn read(resource: &Resource, link_id: &LinkId, json: &str) -> Result<Self, Foreign> {
        let mut fields = Fields::read(json);
        let text = |name: &str| text(fields.as_ref()?.get(name)?);
        let instant = |name| text(name).and_then(|text| Timestamp::parse(&text));
        let (id, link, created_at, collected_at) =
            (text("id"), text("link"), instant("created_at"), instant("collected_at"));
        if link.is_some_and(|link| link.parse() != Ok(link_id.clone())) {
            return Err(Foreign);
        }
        let likeness = fields.as_ref().and_then(|fields| (resource.likeness)(fields));
        let content = content_of(json, fields.as_mut());
        let hash = *blake3::hash(content.as_bytes()).as_bytes();
        Ok(Self {
            id: id.map_or_else(|| format!("{NO_ID}{}", &hex(&hash)[..32]), Cow::into_owned),
            created_at,
            collected_at,
            likeness,
            content,
            hash,
            body: pack(json),
        })
    }
}

impl Record {
    fn is_older_than(&self, held: &Held) -> bool {
        is_older(self.collected_at, held.collected_at)
    }
}

/// Whether the record is an older answer than what is held. What is gone is newer than every list that Belvo collected before
/// the one that lacked it: a record that comes back may itself have been collected long ago.
fn is_late(record: &Record, held: &Held, listed: Option<Timestamp>) -> bool {
    if held.is_gone() { is_older(listed, held.collected_at) } else { record.is_older_than(held) }
}

/// Whether Belvo surely read the first before the second.
fn is_older(collected_at: Option<Timestamp>, than: Option<Timestamp>) -> bool {
    collected_at.zip(than).is_some_and(|(collected_at, than)| collected_at < than)
}

/// What came of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// New versions of records, new records among them.
    pub versions: usize,
    /// Answers older than what is held; kept, and never current.
    pub late: usize,
    /// Records that this list, as the second, says are gone.
    pub gone: usize,
    /// Whether any row of the link's tables may differ now, but for when it was last seen.
    pub changed: bool,
    /// Whether a record was seen with another id, `created_at` or `collected_at` than before.
    pub sighted: bool,
    /// Newest `collected_at` of the list.
    pub collected_at: Option<Timestamp>,
    /// When a second list is wanted, to say whether what this one lacks is gone.
    pub confirm_at: Option<Timestamp>,
    /// Number of the change that keeps it.
    pub change: i64,
}

/// What a record's new content lacks of an old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No row. A content that cannot be flattened loses none: the last good one stays.
    Nothing,
    /// Some row.
    Rows,
    /// The old content cannot be flattened: what went before it stays, and decides.
    Unknown,
}

/// Says what a record's new content, the second, lacks of an old one.
pub type Compare<'c> = dyn FnMut(&str, &str) -> Loss + 'c;

/// Keeps a complete list, inside the transaction of its refresh.
///
/// Where rows of a record's old content are missing from its new one, as `compare` says, a second list has to agree before
/// they are gone, as for a record that is missing from the list; [`Kept::confirm_at`] says when it is wanted.
///
/// # Errors
/// [`Error::Database`].
pub fn keep(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &'static Resource,
    listing: &Listing,
    webhook_count: Option<i64>,
    confirm_after: Duration,
    compare: &mut Compare<'_>,
) -> Result<Kept, Error> {
    let previous = previous(tx, link_id, resource)?;
    let known = known(tx, link_id, resource)?;
    let records = without_repeats(&listing.records);
    let keys = identify(link_id, resource, &records, &known);
    let mut kept =
        Kept { collected_at: records.iter().filter_map(|record| record.collected_at).max(), ..Kept::default() };
    let mut confirm_at = None;
    let mut late = HashSet::new();
    for (record, key) in records.iter().zip(&keys) {
        let sighting = Sighting { tx, link_id, resource, listing, record, key };
        match known.by_key.get(key.as_str()) {
            None => {
                sighting.add_record()?;
                kept.versions += 1;
            }
            Some(held) => match sighting.change_of(held)? {
                None => {
                    sighting.see_again(held)?;
                    if !record.is_older_than(held) {
                        kept.changed |= held.record_id != record.id;
                        kept.sighted |= record.collected_at > held.collected_at || record.created_at != held.created_at;
                    }
                }
                Some(_) if is_late(record, held, kept.collected_at) => {
                    late.insert(key.as_str());
                    kept.late += usize::from(sighting.add_late_version(held)?);
                }
                Some(Change { old, new }) => {
                    if sighting.contents().loses_rows(held.version, old, &new, compare)? {
                        confirm_at = Some(listing.fetched_at + confirm_after);
                    }
                    let shown = if held.is_gone() { previous.map(|previous| previous.started_at) } else { None };
                    sighting.add_version(held, shown.unwrap_or(held.seen_started_at))?;
                    kept.versions += 1;
                }
            },
        }
        if known.key_of_id.get(record.id.as_str()) != Some(key) {
            sighting.note_id()?;
        }
    }
    // An empty list says that records are gone only when a webhook counted none and the link is in order: Belvo drops what
    // it holds without a word.
    let is_empty = records.is_empty();
    let mut ended = HashSet::new();
    if !is_empty || webhook_count == Some(0) {
        let ends = !is_empty || is_valid(tx, link_id)?;
        let shown: HashSet<&str> = keys.iter().map(String::as_str).collect();
        // A record without an id may be any of those that seem to be missing, unless it was one with an id before.
        let named: HashSet<&String> =
            known.key_of_id.iter().filter(|(id, _)| !id.starts_with(NO_ID)).map(|(_, key)| key).collect();
        let mut nameless = records.iter().zip(&keys).filter(|(record, _)| record.id.starts_with(NO_ID));
        let is_doubtful = nameless.any(|(_, key)| !named.contains(key));
        for (key, held) in known.by_key.iter().filter(|(key, _)| !shown.contains(key.as_str())) {
            // What is held was collected after all of this list: it says nothing about what came later.
            if held.is_gone() || is_older(kept.collected_at, held.collected_at) {
                continue;
            }
            if is_doubtful {
                note_shown(tx, link_id, resource, key, listing.fetched_at)?;
                continue;
            }
            let first = first_list_without(tx, link_id, resource, held)?;
            let absent_since = first.unwrap_or(listing.fetched_at);
            if first.is_none() || listing.fetched_at < absent_since + confirm_after {
                confirm_at = Some(absent_since + confirm_after);
            } else if ends {
                end_record(tx, link_id, resource, key, listing, kept.collected_at)?;
                ended.insert(key.as_str());
                kept.gone += 1;
            } else {
                // The link may be in order again by then.
                confirm_at = Some(listing.fetched_at + confirm_after.max(LINK_RECOVERS));
            }
        }
    }
    if kept.versions > 0 {
        listing.drift.note(tx, resource)?;
    }
    kept.changed |= kept.versions + kept.late + kept.gone > 0;
    if known.by_key.values().any(|held| held.version > 1) {
        let now = listing.fetched_at;
        let mut lost = |after, until| lost_rows(tx, link_id, resource, after, until, compare);
        let counted = last_list_that_counts(tx, link_id, resource)?.unwrap_or(Timestamp::from_micros(0));
        for (key, at) in lost(counted - confirm_after, now - confirm_after)? {
            let is_gone = known.by_key.get(&key).is_some_and(Held::is_gone) || ended.contains(key.as_str());
            if is_gone || is_settled(tx, link_id, resource, &key, at + confirm_after)? {
                continue;
            }
            // An older answer agrees with nothing, nor does an empty one: another list has to.
            let wait = if is_empty { confirm_after.max(LINK_RECOVERS) } else { confirm_after };
            if is_empty || late.contains(key.as_str()) {
                confirm_at = confirm_at.into_iter().chain([now + wait]).min();
            } else {
                kept.changed = true;
            }
        }
        // This list may have come too early to agree, and has taken the place of the one that was asked for.
        let pending = lost(now - confirm_after, now)?.first().map(|(_, at)| *at + confirm_after);
        confirm_at = confirm_at.into_iter().chain(pending).min();
    }
    kept.sighted |= kept.changed;
    kept.change = tx.change()?;
    // One in which Belvo names no time was collected when it was fetched.
    let is_as_old = |previous: Previous| kept.collected_at.is_some() && previous.collected_at == kept.collected_at;
    let is_news = kept.changed || !previous.is_some_and(is_as_old);
    tx.execute(
        "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, collected_at, item_count, webhook_count, changed, \
         news_seq) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            link_id,
            resource.name,
            listing.fetched_at,
            listing.started_at,
            kept.collected_at,
            i64::try_from(records.len()).unwrap_or(i64::MAX),
            webhook_count,
            kept.versions + kept.gone > 0,
            is_news.then_some(kept.change)
        ],
    )?;
    Ok(Kept { confirm_at, ..kept })
}

/// The list before this one.
#[derive(Clone, Copy)]
struct Previous {
    started_at: Timestamp,
    collected_at: Option<Timestamp>,
}

fn previous(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Option<Previous>, Error> {
    tx.one(
        "SELECT started_at, collected_at FROM link_snapshots WHERE link_id = $1 AND resource = $2 \
         ORDER BY fetched_at DESC LIMIT 1",
        args![link_id, resource.name],
        |row| Ok(Previous { started_at: row.at(0)?, collected_at: row.opt_at(1)? }),
    )
}

/// When the last list before this one was complete that says of every record what it lacks.
fn last_list_that_counts(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Option<Timestamp>, Error> {
    tx.one(
        "SELECT s.fetched_at FROM link_snapshots s WHERE s.link_id = $1 AND s.resource = $2 AND s.item_count > 0 AND NOT EXISTS \
         (SELECT 1 FROM record_versions v WHERE v.link_id = $1 AND v.resource = $2 AND v.fetched_at = s.fetched_at \
         AND v.is_late = 1) ORDER BY s.fetched_at DESC LIMIT 1",
        args![link_id, resource.name],
        |row| row.at(0),
    )
}

/// Whether a list from `since` on counts for what a record lacks, so that it is settled already.
fn is_settled(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource, key: &str, since: Timestamp) -> Result<bool, Error> {
    let settled = tx.one(
        "SELECT 1 FROM link_snapshots s WHERE s.link_id = $1 AND s.resource = $2 AND s.fetched_at >= $4 AND s.item_count > 0 \
         AND NOT EXISTS (SELECT 1 FROM record_versions v WHERE v.link_id = $1 AND v.resource = $2 AND v.record_key = $3 \
         AND v.fetched_at = s.fetched_at AND v.is_late = 1) LIMIT 1",
        args![link_id, resource.name, key, since],
        |_| Ok(()),
    )?;
    Ok(settled.is_some())
}

/// Whether Belvo says that the link is in order.
fn is_valid(tx: &Tx<'_>, link_id: &LinkId) -> Result<bool, Error> {
    let status = tx.one("SELECT status FROM links WHERE link_id = $1", args![link_id], |row| row.opt_text(0))?;
    Ok(status.flatten().as_deref() == Some("valid"))
}

/// Keeps that a record is gone: a version without a body, as of the list that says so, which Belvo collected at `collected_at`.
fn end_record(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    key: &str,
    listing: &Listing,
    collected_at: Option<Timestamp>,
) -> Result<(), Error> {
    // An empty list has no such time, and ours is not Belvo's.
    tx.execute(
        "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, created_at, collected_at, \
         known_from, started_at, fetched_at, body) \
         SELECT r.link_id, r.resource, r.record_key, max(v.version) + 1, 0, r.record_id, r.created_at, \
         coalesce($7, r.collected_at), \
         $4, $5, $4, $6 FROM records r \
         JOIN record_versions v ON v.link_id = r.link_id AND v.resource = r.resource AND v.record_key = r.record_key \
         WHERE r.link_id = $1 AND r.resource = $2 AND r.record_key = $3 \
         GROUP BY r.link_id, r.resource, r.record_key",
        args![link_id, resource.name, key, listing.fetched_at, listing.started_at, pack("").as_slice(), collected_at],
    )?;
    tx.execute(
        "UPDATE records SET content_hash = $4, version_at = $5, collected_at = coalesce($6, collected_at), version = \
         (SELECT max(version) FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3) \
         WHERE link_id = $1 AND resource = $2 AND record_key = $3",
        args![link_id, resource.name, key, GONE, listing.fetched_at, collected_at],
    )?;
    Ok(())
}

/// Versions that came after the first and up to the second of these instants and lacked rows of the one before, each by its
/// record's key and when it came, the first first.
fn lost_rows(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    after: Timestamp,
    until: Timestamp,
    compare: &mut Compare<'_>,
) -> Result<Vec<(String, Timestamp)>, Error> {
    let versions = tx.all(
        "SELECT record_key, version, fetched_at FROM record_versions WHERE link_id = $1 AND resource = $2 AND version > 1 \
         AND is_late = 0 AND fetched_at > $3 AND fetched_at <= $4 ORDER BY fetched_at",
        args![link_id, resource.name, after, until],
        |row| Ok((row.text(0)?, row.int(1)?, row.at(2)?)),
    )?;
    let mut lost = Vec::new();
    for (key, version, at) in versions {
        let of_record = Contents { tx, link_id, resource, key: &key };
        if let Some((version, new)) = of_record.latest_before(version + 1)?
            && let Some((earlier, old)) = of_record.latest_before(version)?
            && of_record.loses_rows(earlier, old, &new, compare)?
        {
            lost.push((key, at));
        }
    }
    Ok(lost)
}

/// The contents of one record that were current once.
struct Contents<'s> {
    tx: &'s Tx<'s>,
    link_id: &'s LinkId,
    resource: &'s Resource,
    key: &'s str,
}

impl Contents<'_> {
    /// Whether `new` lacks rows of the content before it: of `old`, which is that of `version`, or, where that cannot be
    /// read, of the last one that can.
    fn loses_rows(
        &self,
        mut version: i64,
        mut old: String,
        new: &str,
        compare: &mut Compare<'_>,
    ) -> Result<bool, Error> {
        // Of a record that was gone nothing is left to be lost.
        while !old.is_empty() {
            match compare(&old, new) {
                Loss::Nothing => return Ok(false),
                Loss::Rows => return Ok(true),
                Loss::Unknown => match self.latest_before(version)? {
                    Some(earlier) => (version, old) = earlier,
                    None => return Ok(false),
                },
            }
        }
        Ok(false)
    }

    /// The last version before `version`, and its content.
    fn latest_before(&self, version: i64) -> Result<Option<(i64, String)>, Error> {
        let Self { tx, link_id, resource, key } = *self;
        tx.one(
            "SELECT version, body FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 \
             AND is_late = 0 AND version < $4 ORDER BY version DESC LIMIT 1",
            args![link_id, resource.name, key, version],
            |row| {
                let version = row.int(0)?;
                let place =
                    VersionPlace { link_id: link_id.as_str(), resource: resource.name, record_key: key, version };
                Ok((version, unpack(&place.open(tx, row.bytes(1)?)?)?))
            },
        )
    }
}

/// What `content_hash` of a record holds that is gone: no content has it.
const GONE: &[u8] = &[];

/// A record that is held already; of one that is gone, as of the list that said so.
struct Held {
    record_id: String,
    likeness: String,
    hash: Vec<u8>,
    version: i64,
    created_at: Option<Timestamp>,
    collected_at: Option<Timestamp>,
    seen_started_at: Timestamp,
    seen_fetched_at: Timestamp,
}

impl Held {
    fn is_gone(&self) -> bool {
        self.hash == GONE
    }
}

struct Known {
    by_key: HashMap<String, Held>,
    key_of_id: HashMap<String, String>,
}

fn known(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource) -> Result<Known, Error> {
    let held = tx.all(
        "SELECT record_key, record_id, likeness, content_hash, version, collected_at, seen_started_at, seen_fetched_at, created_at \
         FROM records WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name],
        |row| {
            let held = Held {
                record_id: row.text(1)?,
                likeness: row.text(2)?,
                hash: row.bytes(3)?.to_vec(),
                version: row.int(4)?,
                collected_at: row.opt_at(5)?,
                seen_started_at: row.at(6)?,
                seen_fetched_at: row.at(7)?,
                created_at: row.opt_at(8)?,
            };
            Ok((row.text(0)?, held))
        },
    )?;
    let ids = tx.all(
        "SELECT record_id, record_key FROM record_ids WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name],
        |row| Ok((row.text(0)?, row.text(1)?)),
    )?;
    Ok(Known { by_key: held.into_iter().collect(), key_of_id: ids.into_iter().collect() })
}

/// The first list after `held` was last seen that counts as evidence that it is gone.
fn first_list_without(
    tx: &Tx<'_>,
    link_id: &LinkId,
    resource: &Resource,
    held: &Held,
) -> Result<Option<Timestamp>, Error> {
    let first = tx.one(
        "SELECT min(fetched_at) FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND fetched_at > $3 \
         AND (item_count > 0 OR webhook_count = 0) \
         AND (collected_at IS NULL OR CAST($4 AS BIGINT) IS NULL OR collected_at >= $4)",
        args![link_id, resource.name, held.seen_fetched_at, held.collected_at],
        |row| row.opt_at(0),
    )?;
    Ok(first.flatten())
}

/// Notes that a list may have shown a record.
fn note_shown(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource, key: &str, at: Timestamp) -> Result<(), Error> {
    tx.execute(
        "UPDATE records SET seen_fetched_at = $4 WHERE link_id = $1 AND resource = $2 AND record_key = $3",
        args![link_id, resource.name, key, at],
    )
    .map(drop)
}

/// The records, in the order of their content; of several with one id the newest.
fn without_repeats(records: &[Record]) -> Vec<&Record> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by(|a, b| (&a.id, b.collected_at, &a.content).cmp(&(&b.id, a.collected_at, &b.content)));
    sorted.dedup_by(|a, b| a.id == b.id);
    sorted.sort_by(|a, b| (&a.content, &a.id).cmp(&(&b.content, &b.id)));
    sorted
}

/// The key of each record: by its id, then by what alike records share, and a new one for the rest.
fn identify(link_id: &LinkId, resource: &Resource, records: &[&Record], known: &Known) -> Vec<String> {
    let mut held: Vec<(&str, &Held)> = known.by_key.iter().map(|(key, held)| (key.as_str(), held)).collect();
    held.sort_unstable_by_key(|(key, _)| *key);
    let mut free: HashSet<&str> = held.iter().map(|(key, _)| *key).collect();
    let (mut of_id, mut of_likeness) = (HashMap::<&str, Keys<'_>>::new(), HashMap::<&str, Keys<'_>>::new());
    let mut of_content = HashMap::<(&str, &[u8]), Keys<'_>>::new();
    for (key, held) in held {
        of_id.entry(&held.record_id).or_default().push_back(key);
        of_likeness.entry(&held.likeness).or_default().push_back(key);
        of_content.entry((&held.likeness, &held.hash)).or_default().push_back(key);
    }

    let mut keys: Vec<Option<&str>> =
        records.iter().map(|record| take(of_id.get_mut(&*record.id)?, &mut free)).collect();
    let rest = |keys: &[Option<&str>]| -> Vec<usize> { (0..keys.len()).filter(|at| keys[*at].is_none()).collect() };
    for at in rest(&keys) {
        let key = known.key_of_id.get(&records[at].id).map(String::as_str);
        keys[at] = key.filter(|key| free.remove(key));
    }
    for at in rest(&keys) {
        let Some(likeness) = &records[at].likeness else { continue };
        let alike = of_content.get_mut(&(likeness.as_str(), records[at].hash.as_slice()));
        keys[at] = alike.and_then(|alike| take(alike, &mut free));
    }
    for at in rest(&keys) {
        let Some(likeness) = &records[at].likeness else { continue };
        keys[at] = of_likeness.get_mut(likeness.as_str()).and_then(|alike| take(alike, &mut free));
    }

    let mut given: HashSet<String> = known.by_key.keys().cloned().collect();
    // Numbers that alike records have already need not be tried again.
    let mut next = HashMap::<&str, u32>::new();
    let mut new_key = |at: usize| {
        let record = records[at];
        let number = record.likeness.as_deref().map(|likeness| next.entry(likeness).or_default());
        let mut alone = 0;
        let number = number.unwrap_or(&mut alone);
        loop {
            let key = record_key(link_id, resource, record, *number);
            *number += 1;
            if given.insert(key.clone()) {
                return key;
            }
        }
    };
    keys.into_iter().enumerate().map(|(at, key)| key.map_or_else(|| new_key(at), str::to_owned)).collect()
}

/// Keys of what is alike in something, in order.
type Keys<'k> = VecDeque<&'k str>;

/// The first of `keys` that is free; it is no more.
fn take<'k>(keys: &mut Keys<'k>, free: &mut HashSet<&'k str>) -> Option<&'k str> {
    while let Some(key) = keys.pop_front() {
        if free.remove(key) {
            return Some(key);
        }
    }
    None
}

/// The key of the `n`-th among alike records, in hex: half of the SHA-256 of what they share. It holds nothing personal
/// and can be computed again from Belvo's answers alone.
fn record_key(link_id: &LinkId, resource: &Resource, record: &Record, n: u32) -> String {
    match &record.likeness {
        Some(likeness) => {
            let text = format!("{}\n{link_id}\n{likeness}\n{n}", resource.record_name);
            hex(&Sha256::digest(text.as_bytes())[..16])
        }
        None if n == 0 => record.id.clone(),
        None => format!("{}/{n}", record.id),
    }
}

/// The JSON of a record before and after it changed.
struct Change {
    old: String,
    new: String,
}

/// One record of a list, on its way into the store.
struct Sighting<'s> {
    tx: &'s Tx<'s>,
    link_id: &'s LinkId,
    resource: &'static Resource,
    listing: &'s Listing,
    record: &'s Record,
    key: &'s str,
}

impl Sighting<'_> {
    fn add_record(&self) -> Result<(), Error> {
        let Self { record, listing, .. } = self;
        self.tx.execute(
            "INSERT INTO records (link_id, resource, record_key, record_id, likeness, created_at, collected_at, \
             seen_started_at, seen_fetched_at, content_hash, version, version_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $9)",
            args![
                self.link_id,
                self.resource.name,
                self.key,
                &record.id,
                record.likeness.as_deref().unwrap_or_default(),
                record.created_at,
                record.collected_at,
                listing.started_at,
                listing.fetched_at,
                record.hash.as_slice()
            ],
        )?;
        self.insert_version(1, false, self.first_known(), &record.body)
    }

    fn see_again(&self, held: &Held) -> Result<(), Error> {
        let Self { record, listing, .. } = self;
        // An older answer with the same content does not take back what a newer one said; what was gone says nothing.
        let is_older = !held.is_gone() && record.is_older_than(held);
        let (record_id, created_at, collected_at) = if is_older {
            (&held.record_id, held.created_at, held.collected_at)
        } else {
            (&record.id, record.created_at, record.collected_at.or(held.collected_at.filter(|_| !held.is_gone())))
        };
        self.tx.execute(
            "UPDATE records SET record_id = $4, created_at = $5, collected_at = $6, seen_started_at = $7, seen_fetched_at = $8 \
             WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![
                self.link_id,
                self.resource.name,
                self.key,
                record_id,
                created_at,
                collected_at,
                listing.started_at,
                listing.fetched_at
            ],
        )?;
        Ok(())
    }

    /// Keeps a new content; `shown_at` is the start of the last list that showed what was held.
    fn add_version(&self, held: &Held, shown_at: Timestamp) -> Result<(), Error> {
        let version = self.latest_version()? + 1;
        self.tx.execute(
            "UPDATE records SET likeness = $4, content_hash = $5, version = $6, version_at = $7 \
             WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![
                self.link_id,
                self.resource.name,
                self.key,
                self.record.likeness.as_deref().unwrap_or_default(),
                self.record.hash.as_slice(),
                version,
                self.listing.fetched_at
            ],
        )?;
        self.see_again(held)?;
        self.insert_version(version, false, self.first_known().max(shown_at), &self.record.body)
    }

    /// Keeps an answer that is older than the one held; false when it was kept before. Then a version without a body says
    /// that this list, too, is no evidence of what is current.
    fn add_late_version(&self, held: &Held) -> Result<bool, Error> {
        let mut latest = None;
        self.tx.each(
            "SELECT body, version FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND is_late = 1 \
             ORDER BY version DESC",
            args![self.link_id, self.resource.name, self.key],
            |row| {
                if latest.is_none() {
                    let body = unpack(&self.place(row.int(1)?).open(self.tx, row.bytes(0)?)?)?;
                    latest = Some(body).filter(|body| !body.is_empty());
                }
                Ok::<_, Error>(())
            },
        )?;
        self.tx.execute(
            "UPDATE records SET seen_fetched_at = $4 WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![self.link_id, self.resource.name, self.key, self.listing.fetched_at],
        )?;
        let is_known = latest.is_some_and(|body| content(&body) == self.record.content);
        let version = self.latest_version()?.max(held.version) + 1;
        let body = if is_known { pack("") } else { self.record.body.clone() };
        self.insert_version(version, true, self.first_known(), &body)?;
        Ok(!is_known)
    }

    fn place(&self, version: i64) -> VersionPlace<'_> {
        VersionPlace { link_id: self.link_id.as_str(), resource: self.resource.name, record_key: self.key, version }
    }

    fn first_known(&self) -> Timestamp {
        self.record.collected_at.unwrap_or(self.listing.fetched_at)
    }

    fn latest_version(&self) -> Result<i64, Error> {
        let latest = self.tx.one(
            "SELECT max(version) FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![self.link_id, self.resource.name, self.key],
            |row| row.int(0),
        )?;
        latest.ok_or(Error::Unreadable("a record's versions"))
    }

    fn insert_version(&self, version: i64, is_late: bool, known_from: Timestamp, body: &[u8]) -> Result<(), Error> {
        let Self { record, listing, .. } = self;
        let body = self.place(version).seal(self.tx, body)?;
        self.tx.execute(
            "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, created_at, collected_at, \
             known_from, started_at, fetched_at, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            args![
                self.link_id,
                self.resource.name,
                self.key,
                version,
                is_late,
                &record.id,
                record.created_at,
                record.collected_at,
                known_from,
                listing.started_at,
                listing.fetched_at,
                &*body
            ],
        )?;
        Ok(())
    }

    fn contents(&self) -> Contents<'_> {
        let Self { tx, link_id, resource, key, .. } = *self;
        Contents { tx, link_id, resource, key }
    }

    /// What changed since what is held; `None` when that says the same, however it is spelt.
    fn change_of(&self, held: &Held) -> Result<Option<Change>, Error> {
        if held.hash == self.record.hash {
            return Ok(None);
        }
        let (_, old) = self.contents().latest_before(held.version + 1)?.ok_or(Error::Unreadable("a record's body"))?;
        let new = unpack(&self.record.body)?;
        let plain = |json: &str| content(&spelling::plain(json));
        let is_same = !held.is_gone() && plain(&old) == plain(&new);
        Ok((!is_same).then_some(Change { old, new }))
    }

    fn note_id(&self) -> Result<(), Error> {
        self.tx.execute(
            "INSERT INTO record_ids (link_id, resource, record_id, record_key) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (link_id, resource, record_id) DO UPDATE SET record_key = excluded.record_key",
            args![self.link_id, self.resource.name, &self.record.id, self.key],
        )?;
        Ok(())
    }
}

/// The record's text without volatile fields: fields by name, items of lists by their text. What is not an object is its
/// own content.
fn content(json: &str) -> String {
    content_of(json, Fields::read(json).as_mut())
}

/// The content of `json`, whose `fields` are put in order.
fn content_of(json: &str, fields: Option<&mut Fields<'_>>) -> String {
    fn written(fields: &mut Fields<'_>, content: &mut String) -> Option<()> {
        for (name, value) in fields.sorted().iter().filter(|(name, _)| !VOLATILE.contains(&&**name)) {
            content.push_str(name);
            content.push(':');
            if value.starts_with('[') {
                write_sorted(value, content)?;
            } else {
                content.push_str(value);
            }
            content.push('\n');
        }
        Some(())
    }

    let mut content = String::with_capacity(json.len() + json.len() / 8);
    match fields.and_then(|fields| written(fields, &mut content)) {
        Some(()) => content,
        None => json.to_owned(),
    }
}

/// A value that is a string.
fn text(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix('"')?.strip_suffix('"')? {
        plain if !plain.contains('\\') => Some(plain.into()),
        _ => serde_json::from_str::<String>(value).ok().map(Cow::Owned),
    }
}

fn write_sorted(list: &str, content: &mut String) -> Option<()> {
    let mut reader = Reader::new(list);
    let mut items = Vec::new();
    let mut more = reader.enter().ok()?;
    while more {
        items.push(reader.any().ok()?.of(list));
        more = reader.another(b']').ok()?;
    }
    items.sort_unstable();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            content.push(',');
        }
        content.push_str(item);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flatten::Comparison;
    use crate::queue::{self, Trigger};
    use crate::resources::employments;
    use crate::store::Store;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
    const CONFIRM_AFTER: Duration = Duration::from_hours(1);

    struct Bench {
        store: Store,
        confirm_after: Duration,
        _folder: tempfile::TempDir,
    }

    /// What analysts see of a job: its key, its latest id and its number of contents.
    type Seen = Vec<(String, String, i64)>;

    impl Bench {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let link_id: LinkId = LINK.parse().unwrap();
            let now = Timestamp::from_micros(0);
            store
                .write(move |tx| queue::mark(tx, &link_id, &employments::RESOURCE, Trigger::Webhook, now))
                .await
                .unwrap();
            Self { store, confirm_after: CONFIRM_AFTER, _folder: folder }
        }

        /// A list at `minutes`.
        async fn list(&self, minutes: i64, jobs: &[String]) -> Kept {
            let at = Timestamp::from_micros(minutes * 60_000_000);
            let link_id: LinkId = LINK.parse().unwrap();
            let records = jobs.iter().map(|job| Record::read(&employments::RESOURCE, &link_id, job).unwrap()).collect();
            let listing = Listing { started_at: at, fetched_at: at, records, drift: Drift::default() };
            // What the webhook of an empty list counted.
            let webhook_count = listing.records.is_empty().then_some(0);
            let confirm_after = self.confirm_after;
            self.store
                .write(move |tx| {
                    let mut comparison = Comparison::of(&employments::RESOURCE);
                    let compare = &mut |old: &str, new: &str| comparison.loss(old, new);
                    let resource = &employments::RESOURCE;
                    let kept = keep(tx, &link_id, resource, &listing, webhook_count, confirm_after, compare)?;
                    if let Some(at) = kept.confirm_at {
                        queue::mark(tx, &link_id, resource, Trigger::Confirm, at)?;
                    }
                    Ok(kept)
                })
                .await
                .unwrap()
        }

        async fn set_status(&self, status: &'static str) {
            let now = Timestamp::from_micros(0);
            let change = move |tx: &Tx<'_>| {
                tx.execute(
                    "INSERT INTO links (link_id, status, first_seen_at, changed_seq) VALUES ($1, $2, $3, 1) \
                     ON CONFLICT (link_id) DO UPDATE SET status = excluded.status",
                    args![LINK, status, now],
                )
            };
            self.store.write(change).await.unwrap();
        }

        async fn forget_marks(&self) {
            self.store.write(|tx| tx.execute("UPDATE refreshes SET due_at = NULL", args![])).await.unwrap();
        }

        /// For each version: in which minute it could have been known, and whether it says that the record is gone.
        async fn versions(&self) -> Vec<(i64, bool)> {
            let read = |tx: &Tx<'_>| {
                tx.all("SELECT known_from, body FROM record_versions ORDER BY version", args![], |row| {
                    Ok((row.int(0)? / 60_000_000, unpack(row.bytes(1)?)?.is_empty()))
                })
            };
            self.store.read(read).await.unwrap()
        }

        /// For each answer that came too late: in which minute its list was complete, and whether it has no body.
        async fn lists_of_late_versions(&self) -> Vec<(i64, bool)> {
            let sql = "SELECT fetched_at, body FROM record_versions WHERE is_late = 1 ORDER BY version";
            let read = |tx: &Tx<'_>| {
                tx.all(sql, args![], |row| Ok((row.int(0)? / 60_000_000, unpack(row.bytes(1)?)?.is_empty())))
            };
            self.store.read(read).await.unwrap()
        }

        async fn seen(&self) -> Seen {
            let read = |tx: &Tx<'_>| {
                tx.all("SELECT record_key, record_id, version FROM records ORDER BY record_key", args![], |row| {
                    Ok((row.text(0)?, row.text(1)?, row.int(2)?))
                })
            };
            self.store.read(read).await.unwrap()
        }

        async fn due(&self) -> Option<i64> {
            let read = |tx: &Tx<'_>| tx.one("SELECT due_at / 60000000 FROM refreshes", args![], |row| row.opt_int(0));
            self.store.read(read).await.unwrap().flatten()
        }
    }

    fn job(id: u32, code: &str, start: &str, end: &str, collected_minute: u32) -> String {
        format!(
            r#"{{"id":"{id:08}-0000-4000-8000-000000000000","link":"{LINK}","created_at":"2026-01-01T00:00:00.000Z",
            "collected_at":"2026-01-01T00:{collected_minute:02}:00.000Z","start_date":"{start}","end_date":{end},
            "employer_data":{{"code":"{code}"}}}}"#
        )
    }

    #[tokio::test]
    async fn the_key_can_be_computed_from_belvos_answer() {
        let bench = Bench::new().await;
        bench.list(0, &[job(1, "99.000.042", "2020-01-01", "null", 0)]).await;
        let text = format!("employment\n{LINK}\n99000042\n2020-01-01\n0");
        assert_eq!(bench.seen().await[0].0, hex(&Sha256::digest(text.as_bytes())[..16]));
    }

    #[tokio::test]
    async fn a_job_that_is_spelt_otherwise_has_no_new_version() {
        let bench = Bench::new().await;
        let plain = job(1, "99000042", "2020-01-01", "null", 0).replace("}}", r#"},"later":{"a":"é","b":[1, 2]}}"#);
        bench.list(0, std::slice::from_ref(&plain)).await;
        let spelt = plain.replace(r#"{"a":"é","b":[1, 2]}"#, r#"{ "b":[1,2], "a":"\u00e9" }"#);
        assert_ne!(spelt, plain);
        let again = bench.list(10, std::slice::from_ref(&spelt)).await;
        assert_eq!((again.versions, again.changed), (0, false));
        let other = bench.list(20, &[spelt.replace("[1,2]", "[2,1]")]).await;
        assert_eq!((other.versions, other.changed), (1, true));
    }

    #[test]
    fn a_name_is_the_same_however_it_is_spelt() {
        let plain = job(1, "99000042", "2020-01-01", "null", 0);
        let spelt = plain.replace("\"id\"", r#""i\u0064""#).replace("\"start_date\"", r#""start\u005fdate""#);
        let link_id: LinkId = LINK.parse().unwrap();
        let [plain, spelt] = [plain, spelt].map(|job| Record::read(&employments::RESOURCE, &link_id, &job).unwrap());
        assert_eq!((&spelt.id, &spelt.likeness, &spelt.content), (&plain.id, &plain.likeness, &plain.content));
    }

    #[tokio::test]
    async fn a_list_that_brings_nothing_new_adds_no_version() {
        let bench = Bench::new().await;
        let first = bench.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        assert_eq!((first.versions, first.changed, first.sighted), (1, true, true));
        let again = bench.list(10, &[job(1, "99000042", "2020-01-01", "null", 5)]).await;
        assert_eq!((again.versions, again.changed, again.sighted), (0, false, true));
        let same = bench.list(20, &[job(1, "99000042", "2020-01-01", "null", 5)]).await;
        assert_eq!((same.versions, same.changed, same.sighted), (0, false, false));
    }

    #[tokio::test]
    async fn a_job_keeps_its_key_under_another_id_and_with_another_employer_or_start() {
        let bench = Bench::new().await;
        bench.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        let key = bench.seen().await[0].0.clone();
        // The same job under another id,
        bench.list(10, &[job(2, "99000042", "2020-01-01", "null", 1)]).await;
        // then another start under that id, then another employer, then the first id again.
        bench.list(20, &[job(2, "99000042", "2020-02-01", "null", 2)]).await;
        bench.list(30, &[job(2, "99000077", "2020-02-01", "null", 3)]).await;
        bench.list(40, &[job(1, "99000077", "2020-02-01", "null", 4)]).await;
        let seen = bench.seen().await;
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].0.as_str(), seen[0].2), (key.as_str(), 3));
        // A job whose id, employer and start are all others is a new one.
        bench.list(50, &[job(9, "99000099", "2024-01-01", "null", 5)]).await;
        assert_eq!(bench.seen().await.len(), 2);
    }

    #[tokio::test]
    async fn alike_jobs_are_told_apart_whatever_their_order() {
        let jobs = [
            job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 0),
            job(2, "99000042", "2020-01-01", "null", 0),
            job(3, "99000042", "2020-01-01", "\"2021-06-30\"", 0),
        ];
        let mut orders = Vec::new();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let bench = Bench::new().await;
            bench.list(0, &order.map(|at: usize| jobs[at].clone())).await;
            orders.push(bench.seen().await);
        }
        assert_eq!(orders[0].len(), 3);
        assert!(orders.iter().all(|seen| *seen == orders[0]));
    }

    #[tokio::test]
    async fn an_older_answer_is_kept_and_never_current() {
        let bench = Bench::new().await;
        bench.list(0, &[job(1, "99000042", "2020-01-01", "null", 30)]).await;
        let late = bench.list(10, &[job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 20)]).await;
        assert_eq!((late.versions, late.late), (0, 1));
        let again = bench.list(20, &[job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 20)]).await;
        assert_eq!(again.late, 0, "it was kept before");
        assert_eq!(bench.seen().await[0].2, 1);
    }

    /// A whole job whose pay was of these months.
    fn paid(months: &[u32], collected_minute: u32) -> String {
        let pay = |month| {
            format!(
                r#"{{"month":"2020-{month:02}","base_amount":1.00,"retained_amount":null,"type":null,"currency":"BRL"}}"#
            )
        };
        let salaries: Vec<String> = months.iter().map(pay).collect();
        let employer = r#"{"name":"EMPRESA","code":"99000042","economic_activity":null}"#;
        job(1, "99000042", "2020-01-01", "null", collected_minute).replace(
            r#"{"code":"99000042"}"#,
            &format!(r#"{employer},"occupations":[],"salaries":[{}]"#, salaries.join(",")),
        )
    }

    #[tokio::test]
    async fn the_same_older_answer_twice_agrees_with_nothing() {
        let bench = Bench::new().await;
        bench.list(0, &[paid(&[1, 2], 30)]).await;
        bench.forget_marks().await;
        bench.list(10, &[paid(&[1], 40)]).await;
        assert_eq!(bench.due().await, Some(70), "a row is missing");
        for minutes in [20, 75] {
            bench.forget_marks().await;
            let late = bench.list(minutes, &[paid(&[1, 2, 3], 20)]).await;
            assert_eq!((late.versions, late.late), (0, usize::from(minutes == 20)));
        }
        assert_eq!(bench.due().await, Some(135), "a list that agrees is still wanted");
        let versions = bench.lists_of_late_versions().await;
        assert_eq!(versions, [(20, false), (75, true)], "the second says no more than that it is no evidence");
        for (minutes, jobs) in [(135, vec![paid(&[1, 2, 4], 20)]), (195, vec![])] {
            bench.forget_marks().await;
            bench.list(minutes, &jobs).await;
            assert_eq!(bench.due().await, Some(minutes + 60), "nor does another old one, or an empty one");
        }
        bench.forget_marks().await;
        assert!(bench.list(255, &[paid(&[1], 40)]).await.changed, "this one does");
        assert!(!bench.list(265, &[paid(&[1], 40)]).await.changed, "and once");
        assert_eq!(bench.due().await, None);
    }

    #[tokio::test]
    async fn a_content_that_cannot_be_read_hides_no_row_that_is_lost() {
        let bench = Bench::new().await;
        bench.list(0, &[paid(&[1, 2], 0)]).await;
        bench.list(10, &[paid(&[1, 2], 10).replace("1.00", "\"one\"")]).await;
        bench.forget_marks().await;
        bench.list(20, &[paid(&[1], 20)]).await;
        assert_eq!(bench.due().await, Some(80));
        assert!(bench.list(80, &[paid(&[1], 20)]).await.changed, "two lists agree");
    }

    #[tokio::test]
    async fn what_empty_lists_ended_comes_back_as_it_was() {
        let bench = Bench::new().await;
        bench.set_status("valid").await;
        let jobs = [job(1, "99000042", "2020-01-01", "null", 0)];
        bench.list(0, &jobs).await;
        bench.list(100, &[]).await;
        assert_eq!(bench.list(200, &[]).await.gone, 1);
        bench.forget_marks().await;
        let again = bench.list(300, &[]).await;
        assert_eq!((again.changed, bench.due().await), (false, None), "nothing is left to be asked");
        let back = bench.list(400, &jobs).await;
        assert_eq!((back.versions, back.late), (1, 0));
    }

    #[tokio::test]
    async fn an_older_answer_brings_back_nothing_that_is_gone_and_no_older_id() {
        let bench = Bench::new().await;
        let stays = |minute| job(1, "99000042", "2020-01-01", "null", minute);
        let goes = |end, minute| job(2, "99000077", "2021-01-01", end, minute);
        bench.list(0, &[stays(10), goes("null", 10)]).await;
        bench.list(100, &[stays(30)]).await;
        assert_eq!(bench.list(200, &[stays(30)]).await.gone, 1);
        for (minutes, end) in [(210, "null"), (220, "\"2021-12-31\"")] {
            let late = bench.list(minutes, &[stays(20), goes(end, 20)]).await;
            assert_eq!((late.versions, late.late), (0, 1), "{end}");
        }
        // A record that was collected long ago may come back in a list that is new.
        let back = bench.list(230, &[stays(40), goes("null", 10)]).await;
        assert_eq!((back.versions, back.late), (1, 0));

        let renamed = bench.list(240, &[job(3, "99000042", "2020-01-01", "null", 50)]).await;
        assert!(renamed.changed);
        let late = bench.list(250, &[stays(20)]).await;
        assert_eq!((late.changed, late.sighted), (false, false));
        let ids: HashSet<String> = bench.seen().await.into_iter().map(|(_, id, _)| id[..8].to_owned()).collect();
        assert_eq!(ids, HashSet::from(["00000003".to_owned(), "00000002".to_owned()]));
    }

    #[tokio::test]
    async fn an_older_list_says_nothing_about_what_it_lacks() {
        let bench = Bench::new().await;
        let stays = |minute| job(1, "99000042", "2020-01-01", "null", minute);
        let newer = job(2, "99000077", "2021-01-01", "null", 30);
        bench.list(0, &[stays(30), newer.clone()]).await;
        bench.forget_marks().await;
        bench.list(10, &[stays(20)]).await;
        assert_eq!(bench.due().await, None, "nothing is missing from an older list");
        assert_eq!(bench.list(500, &[stays(20)]).await.gone, 0);
        // Nor is it the first of two that agree.
        assert_eq!(bench.list(600, &[stays(40)]).await.gone, 0);
        assert_eq!(bench.due().await, Some(660));
        assert_eq!(bench.list(660, &[stays(40)]).await.gone, 1);
    }

    #[tokio::test]
    async fn one_list_ends_nothing_however_soon_a_second_may_agree() {
        let bench = Bench { confirm_after: Duration::ZERO, ..Bench::new().await };
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        bench.list(0, &[stays.clone(), goes]).await;
        assert_eq!(bench.list(10, std::slice::from_ref(&stays)).await.gone, 0);
        assert_eq!(bench.list(11, std::slice::from_ref(&stays)).await.gone, 1);
    }

    #[tokio::test]
    async fn a_record_without_an_id_may_be_any_that_seems_to_be_missing() {
        let bench = Bench::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        bench.list(0, &[stays.clone(), goes.clone()]).await;
        let nameless = r#"{"link":null,"collected_at":"2026-01-01T00:00:00.000Z"}"#.to_owned();
        for minutes in [10, 500] {
            assert_eq!(bench.list(minutes, &[stays.clone(), nameless.clone()]).await.gone, 0, "at {minutes}");
        }
        // Once it has an id again, two lists have to agree as ever; the nameless one is gone after as many.
        bench.list(600, std::slice::from_ref(&stays)).await;
        assert_eq!(bench.list(700, std::slice::from_ref(&stays)).await.gone, 2);
    }

    #[tokio::test]
    async fn twenty_thousand_records_are_told_apart_without_comparing_each_with_each() {
        let bench = Bench::new().await;
        // Every tenth is alike in employer and start; later all ids are others, and the order is turned around.
        let jobs = |first_id: u32, skipped: u32, minute: u32| -> Vec<String> {
            let alike = |n: u32| format!("99{:06}", if n.is_multiple_of(10) { 0 } else { n });
            let jobs = (skipped..20_000).map(|n| {
                let end = format!("\"{:04}-01-01\"", 2000 + n % 1000);
                job(first_id + n, &alike(n), "2020-01-01", &end, minute)
            });
            jobs.collect()
        };
        assert_eq!(bench.list(0, &jobs(0, 0, 0)).await.versions, 20_000);
        let before: HashSet<String> = bench.seen().await.into_iter().map(|(key, ..)| key).collect();
        let mut turned = jobs(50_000, 0, 1);
        turned.reverse();
        let again = bench.list(10, &turned).await;
        assert_eq!((again.versions, again.gone), (0, 0));
        assert_eq!(bench.seen().await.into_iter().map(|(key, ..)| key).collect::<HashSet<_>>(), before);
        bench.list(20, &jobs(50_000, 15_000, 2)).await;
        assert_eq!(bench.list(80, &jobs(50_000, 15_000, 2)).await.gone, 15_000);
    }

    #[tokio::test]
    async fn a_missing_job_is_asked_for_again_and_not_for_ever() {
        let bench = Bench::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        bench.list(0, &[stays.clone(), goes]).await;
        assert!(!bench.list(10, std::slice::from_ref(&stays)).await.changed);
        assert_eq!(bench.due().await, Some(0), "the mark of the bench is still there, and earlier");
        bench.store.write(|tx| tx.execute("UPDATE refreshes SET due_at = NULL", args![])).await.unwrap();
        bench.list(20, std::slice::from_ref(&stays)).await;
        assert_eq!(bench.due().await, Some(70));
        bench.store.write(|tx| tx.execute("UPDATE refreshes SET due_at = NULL", args![])).await.unwrap();
        assert!(bench.list(75, std::slice::from_ref(&stays)).await.changed, "two lists agree");
        assert_eq!(bench.due().await, None);
    }

    #[tokio::test]
    async fn a_job_that_is_gone_and_comes_back_with_equal_content_begins_a_new_version() {
        let bench = Bench::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        let both = [stays.clone(), goes.clone()];
        bench.list(10, &both).await;
        bench.list(20, std::slice::from_ref(&stays)).await;
        // In time: nothing happened.
        assert!(!bench.list(30, &both).await.changed);
        bench.list(40, std::slice::from_ref(&stays)).await;
        assert_eq!(bench.list(100, std::slice::from_ref(&stays)).await.gone, 1);
        assert!(!bench.list(200, std::slice::from_ref(&stays)).await.changed, "it is gone once");
        let back = bench.list(300, &both).await;
        assert_eq!((back.versions, back.changed), (1, true));
        let minute = |text: &str| Timestamp::parse(text).unwrap().as_micros() / 60_000_000;
        let collected = minute("2026-01-01T00:00:00Z");
        let mut versions = bench.versions().await;
        versions.sort_unstable();
        // Never earlier than the last list that lacked it, and never earlier than Belvo collected it.
        assert_eq!(versions, [(100, true), (collected, false), (collected, false), (collected, false)]);
        assert_eq!(bench.seen().await.iter().map(|seen| seen.2).max(), Some(3));
    }

    #[tokio::test]
    async fn an_empty_list_ends_jobs_of_a_valid_link_only() {
        let bench = Bench::new().await;
        bench.set_status("invalid").await;
        bench.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        bench.forget_marks().await;
        bench.list(10, &[]).await;
        assert_eq!(bench.due().await, Some(70));
        bench.forget_marks().await;
        assert_eq!(bench.list(80, &[]).await.gone, 0);
        assert_eq!(bench.due().await, Some(80 + 24 * 60), "the link may be valid by then");
        bench.set_status("valid").await;
        let third = bench.list(80 + 24 * 60, &[]).await;
        assert_eq!((third.gone, third.changed), (1, true));
    }

    #[test]
    fn a_record_of_another_link_is_foreign() {
        let other: LinkId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
        let record = job(1, "99000042", "2020-01-01", "null", 0);
        assert!(Record::read(&employments::RESOURCE, &other, &record).is_err());
        assert!(Record::read(&employments::RESOURCE, &other, r#"{"id":"1","link":null}"#).is_ok());
        assert!(Record::read(&employments::RESOURCE, &other, "not JSON").is_ok(), "kept, and listed as rejected");
    }

    /// What happens to a job of a list before it is listed.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Nothing,
        Reissued,
        /// The employer, the start and the end are others, under the same id.
        Corrected,
    }

    /// Lists of jobs as they came, and the keys that each job had after each of them.
    async fn keys(
        jobs: &[(u8, u8, u8)],
        lists: &[(Vec<Event>, u64)],
        with_reissues: bool,
        in_order: bool,
    ) -> Vec<Vec<String>> {
        let bench = Bench::new().await;
        // The id of each job, and how often it was corrected.
        let mut state: Vec<(u32, u32)> = (0..jobs.len()).map(|at| (u32::try_from(at).unwrap(), 0)).collect();
        let mut next_id = 1_000;
        let mut found = Vec::new();
        for (nth, (events, seed)) in lists.iter().enumerate() {
            for (event, (id, corrections)) in events.iter().zip(&mut state) {
                match event {
                    Event::Reissued if with_reissues => {
                        (*id, next_id) = (next_id, next_id + 1);
                    }
                    Event::Corrected if nth > 0 => *corrections += 1,
                    _ => {}
                }
            }
            let mut listed: Vec<(u64, String)> = jobs
                .iter()
                .zip(&state)
                .enumerate()
                .map(|(at, (&(employer, start, end), &(id, corrections)))| {
                    let rank =
                        if in_order { at as u64 } else { (at as u64 + 1).wrapping_mul(seed | 1).rotate_left(17) };
                    (rank, listed_job(id, employer, start, end, corrections, at, rank))
                })
                .collect();
            listed.sort();
            let minutes = i64::try_from(nth).unwrap() * 10;
            bench.list(minutes, &listed.into_iter().map(|(_, job)| job).collect::<Vec<_>>()).await;
            let seen = bench.seen().await;
            let key = |id: u32| {
                let text = format!("{id:08}-0000-4000-8000-000000000000");
                seen.iter().find(|(_, record_id, _)| *record_id == text).map(|(key, _, _)| key.clone()).unwrap()
            };
            assert_eq!(seen.len(), jobs.len());
            found.push(state.iter().map(|(id, _)| key(*id)).collect());
        }
        found
    }

    /// A job whose lists are turned by `rank`.
    fn listed_job(id: u32, employer: u8, start: u8, end: u8, corrections: u32, at: usize, rank: u64) -> String {
        let employer =
            if corrections > 0 { format!("991{at:02}{corrections:03}") } else { format!("9900000{employer}") };
        let (start, end) = (2010 + u32::from(start) + corrections, 2030 + u32::from(end));
        let mut pays = [1_u32, 2, 3].map(|month| format!(r#"{{"month":"2020-{month:02}","base_amount":{month}.00}}"#));
        pays.rotate_left(usize::try_from(rank % 3).unwrap());
        format!(
            r#"{{"id":"{id:08}-0000-4000-8000-000000000000","link":"{LINK}","created_at":null,
            "collected_at":"2026-01-01T00:00:00.000Z","start_date":"{start}-01-01","end_date":"{end}-12-31",
            "employer_data":{{"code":"{employer}"}},"salaries":[{}]}}"#,
            pays.join(",")
        )
    }

    fn events(jobs: usize) -> impl Strategy<Value = (Vec<Event>, u64)> {
        let event = prop_oneof![3 => Just(Event::Nothing), 2 => Just(Event::Reissued), 1 => Just(Event::Corrected)];
        (proptest::collection::vec(event, jobs), any::<u64>())
    }

    /// Whether a held record is the listed one.
    type Way<'w> = &'w dyn Fn(&Record, &String, &Held) -> bool;

    /// What [`identify`] says, found out by comparing each with each.
    fn identify_slowly(link_id: &LinkId, records: &[&Record], known: &Known) -> Vec<String> {
        let mut keys: Vec<Option<String>> = vec![None; records.len()];
        let mut free: Vec<(&String, &Held)> = known.by_key.iter().collect();
        free.sort_by_key(|(key, _)| *key);
        let by_id = |record: &Record, _: &String, held: &Held| held.record_id == record.id;
        let by_old_id = |record: &Record, key: &String, _: &Held| known.key_of_id.get(&record.id) == Some(key);
        let alike = |record: &Record, held: &Held| record.likeness.as_ref() == Some(&held.likeness);
        let by_content = |record: &Record, _: &String, held: &Held| alike(record, held) && held.hash == record.hash;
        let by_likeness = |record: &Record, _: &String, held: &Held| alike(record, held);
        let ways: [Way<'_>; 4] = [&by_id, &by_old_id, &by_content, &by_likeness];
        for is_wanted in ways {
            for (at, record) in records.iter().enumerate() {
                if keys[at].is_none()
                    && let Some(found) = free.iter().position(|(key, held)| is_wanted(record, key, held))
                {
                    keys[at] = Some(free.remove(found).0.clone());
                }
            }
        }
        let mut given: Vec<String> = known.by_key.keys().cloned().collect();
        let new_key = |record: &&Record| {
            let key = (0..).map(|number| record_key(link_id, &employments::RESOURCE, record, number));
            let key = key.into_iter().find(|key| !given.contains(key)).unwrap();
            given.push(key.clone());
            key
        };
        let mut new_key = new_key;
        keys.into_iter().zip(records).map(|(key, record)| key.unwrap_or_else(|| new_key(record))).collect()
    }

    /// A record of few ids, likenesses and contents.
    fn small_record() -> impl Strategy<Value = (u8, Option<u8>, u8)> {
        (0_u8..8, proptest::option::of(0_u8..3), 0_u8..3)
    }

    proptest! {
        #[test]
        fn records_get_the_keys_that_comparing_each_with_each_gives(
            held in proptest::collection::vec(small_record(), 0..10),
            old_ids in proptest::collection::vec((0_u8..12, 0_usize..10), 0..6),
            listed in proptest::collection::vec(small_record(), 0..10),
        ) {
            let link_id: LinkId = LINK.parse().unwrap();
            let at = Timestamp::from_micros(0);
            let record = |(id, likeness, content): (u8, Option<u8>, u8)| Record {
                id: format!("id {id}"),
                created_at: None,
                collected_at: None,
                likeness: likeness.map(|likeness| format!("like {likeness}")),
                content: content.to_string(),
                hash: [content; 32],
                body: Vec::new(),
            };
            let mut known = Known { by_key: HashMap::new(), key_of_id: HashMap::new() };
            for (nth, told) in held.into_iter().enumerate() {
                let Record { id, likeness, hash, .. } = record(told);
                let likeness = likeness.unwrap_or_default();
                let standing = Held {
                    record_id: id, likeness, hash: hash.to_vec(), version: 1, created_at: None, collected_at: None,
                    seen_started_at: at, seen_fetched_at: at,
                };
                // Some keys are those that records of this likeness would get.
                let key = if nth % 2 == 0 { format!("key {nth}") } else {
                    record_key(&link_id, &employments::RESOURCE, &record(told), u32::try_from(nth / 2).unwrap())
                };
                known.by_key.insert(key, standing);
            }
            let keys: Vec<String> = known.by_key.keys().cloned().collect();
            for (id, nth) in old_ids {
                if let Some(key) = keys.get(nth) {
                    known.key_of_id.insert(format!("id {id}"), key.clone());
                }
            }
            let listed: Vec<Record> = listed.into_iter().map(record).collect();
            let records = without_repeats(&listed);
            let found = identify(&link_id, &employments::RESOURCE, &records, &known);
            prop_assert_eq!(&found, &identify_slowly(&link_id, &records, &known));
            prop_assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn keys_depend_neither_on_ids_nor_on_any_order(
            (jobs, lists) in proptest::collection::btree_set((0_u8..3, 0_u8..2, 0_u8..4), 1..6).prop_flat_map(|jobs| {
                let jobs: Vec<_> = jobs.into_iter().collect();
                let lists = proptest::collection::vec(events(jobs.len()), 1..5);
                (Just(jobs), lists)
            }),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let plain = runtime.block_on(keys(&jobs, &lists, false, true));
            let shuffled = runtime.block_on(keys(&jobs, &lists, true, false));
            prop_assert_eq!(&plain, &shuffled);
            // And a key is for ever.
            prop_assert!(plain.iter().all(|keys| keys == &plain[0]));
        }
    }
}
