//! A complete list → new versions of its records: identity, difference, absence.
//!
//! *Takes* the records of one list, as they came. *Gives* versions in the record store, inside the caller's
//! transaction, so that they, the snapshot row and the queue entry are kept together or not at all. *Promises* that a
//! record keeps its key when Belvo gives it another id or corrects its employer or start; that the order of a list or
//! of its arrays changes nothing; that a list which brings nothing new adds no version; and that an older answer never
//! replaces a newer one. *Not here*: what the content means to analysts (`flatten`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{Timestamp, credible};
use crate::json::Fields;
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::sensitive::hex;
use crate::store::{Error, Tx, args};

mod absence;
mod body;
mod content;
mod identity;
#[cfg(test)]
pub(crate) mod test_state;
mod versions;

pub use absence::is_settled;
pub use body::unpack;

use body::pack;
use content::content_of;
use identity::{Known, identify, without_repeats};
use versions::{Change, Held, Sighting, is_older};

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
    /// Values that a column's list of values does not have, and a `collected_at` that cannot be true.
    pub unknown_values: usize,
    /// Records that cannot be flattened.
    pub rejected: usize,
}

impl Drift {
    /// What the counters in `meta` begin with; the resource and the kind follow.
    const COUNTERS: &str = "drift ";

    /// What was counted since the state was made, by resource and kind: `employments fields`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn counted(tx: &Tx<'_>) -> Result<BTreeMap<String, u64>, Error> {
        let sql = "SELECT name, CAST(value AS BIGINT) FROM meta WHERE name LIKE $1 || '%'";
        let counted = tx.all(sql, args![Self::COUNTERS], |row| Ok((row.text(0)?, row.count(1)?)))?.into_iter();
        Ok(counted.map(|(name, count)| (name.trim_start_matches(Self::COUNTERS).to_owned(), count)).collect())
    }

    /// Adds these to what was counted since the state was made, for `status`.
    fn note(&self, tx: &Tx<'_>, resource: &Resource) -> Result<(), Error> {
        let kinds = [("fields", self.unknown_fields), ("values", self.unknown_values), ("rejected", self.rejected)];
        for (kind, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
            tx.execute(
                "INSERT INTO meta (name, value) VALUES ($1, CAST($2 AS TEXT)) \
                 ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + $2 AS TEXT)",
                args![&format!("{}{} {kind}", Self::COUNTERS, resource.name), count],
            )?;
        }
        Ok(())
    }
}

/// When a complete list was made, and Belvo collected it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListTimes {
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it was complete.
    pub fetched_at: Timestamp,
    /// When Belvo collected the newest of its records, as far as that can be true.
    pub collected_at: Option<Timestamp>,
}

impl ListTimes {
    /// [`ListTimes::collected_at`], if it can be true: a list that an earlier version kept may have one that cannot.
    pub fn collected(&self) -> Option<Timestamp> {
        credible(self.collected_at, self.fetched_at)
    }
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
        let text = |name: &str| fields.as_ref()?.text(name);
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

    /// Whether it says that Belvo collected it when that cannot be, as of `fetched_at`.
    pub fn is_ahead(&self, fetched_at: Timestamp) -> bool {
        self.collected_at.is_some() && self.collected(fetched_at).is_none()
    }

    /// When Belvo collected it, as far as that can be true of a record that was fetched at `fetched_at`.
    fn collected(&self, fetched_at: Timestamp) -> Option<Timestamp> {
        credible(self.collected_at, fetched_at)
    }
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
    /// Newest `collected_at` of the list that can be true.
    pub collected_at: Option<Timestamp>,
    /// When another list is wanted, to say whether what this one lacks is gone: the earliest of what is wanted for each
    /// record and row.
    pub confirm_at: Option<Timestamp>,
    /// Number of the change that keeps it.
    pub change: i64,
}

impl Kept {
    /// Asks for another list at `at`, unless one is wanted earlier: that one will ask again for whatever it comes too
    /// early for. Callers give no time before this list, because that would ask for lists without an end.
    fn want_list_at(&mut self, at: Timestamp) {
        self.confirm_at = Some(self.confirm_at.map_or(at, |wanted| wanted.min(at)));
    }
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

/// Compares a record's old content with its new one, in this order, and says what the new one lacks.
pub type Compare<'c> = dyn FnMut(&str, &str) -> Loss + 'c;

/// Keeps a complete list, inside the transaction of its refresh.
///
/// Where rows of a record's old content are missing from its new one, as `compare` says, a second list has to agree
/// before they are gone, as for a record that is missing from the list; [`Kept::confirm_at`] says when it is wanted.
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
    let of = LinkRecords { tx, link_id, resource };
    let (previous, known) = (of.previous()?, of.known()?);
    // The clock may have been set back since the last list. What came later is later all the same.
    let earliest = previous.map_or(listing.fetched_at, |previous| previous.fetched_at + Duration::from_micros(1));
    let fetched_at = listing.fetched_at.max(earliest);
    let records = without_repeats(&listing.records, fetched_at);
    let keys = identify(link_id, resource, &records, &known);
    let collected_at = records.iter().filter_map(|record| record.collected(fetched_at)).max();
    let kept = Kept { collected_at, ..Kept::default() };
    let list = ListTimes { started_at: listing.started_at, fetched_at, collected_at };
    let (records, keys, known) = (&*records, &*keys, &known);
    let is_stale = is_stale(records, keys, known, list);
    let drift = &listing.drift;
    let mut keeping = Keeping { of, list, drift, records, keys, known, previous, is_stale, confirm_after, kept };
    keeping.see_each(compare)?;
    let ended = keeping.end_missing(webhook_count)?;
    keeping.settle_lost_rows(&ended, compare)?;
    keeping.note_list(webhook_count)
}

/// Whether Belvo surely collected the list before what is held: one of its records is older than the held one; or,
/// where it shows no held record, the whole list is older than the newest of what is held.
fn is_stale(records: &[&Record], keys: &[String], known: &Known, list: ListTimes) -> bool {
    let is_held = |held: &&Held| !held.is_gone();
    let shared: Vec<(&Record, &Held)> = records
        .iter()
        .zip(keys)
        .filter_map(|(record, key)| Some((*record, known.by_key.get(key).filter(is_held)?)))
        .collect();
    if shared.is_empty() {
        let newest = known.by_key.values().filter(is_held).filter_map(Held::collected).max();
        return is_older(list.collected_at, newest);
    }
    shared.iter().any(|(record, held)| record.is_older_than(held, list.fetched_at))
}

/// A link's resource, and the transaction in which its list is kept.
#[derive(Clone, Copy)]
struct LinkRecords<'s> {
    tx: &'s Tx<'s>,
    link_id: &'s LinkId,
    resource: &'s Resource,
}

impl LinkRecords<'_> {
    /// The last list that was kept.
    fn previous(self) -> Result<Option<ListTimes>, Error> {
        let Self { tx, link_id, resource } = self;
        tx.one(
            "SELECT started_at, collected_at, fetched_at FROM link_snapshots WHERE link_id = $1 AND resource = $2 \
             ORDER BY fetched_at DESC LIMIT 1",
            args![link_id, resource.name],
            |row| Ok(ListTimes { started_at: row.at(0)?, collected_at: row.opt_at(1)?, fetched_at: row.at(2)? }),
        )
    }
}

/// A list that is being kept: what it shows, what was known before it, and what came of it so far.
struct Keeping<'k> {
    of: LinkRecords<'k>,
    /// When it was made; complete after the list before it.
    list: ListTimes,
    drift: &'k Drift,
    /// Its records, each once.
    records: &'k [&'k Record],
    /// The key of each.
    keys: &'k [String],
    known: &'k Known,
    previous: Option<ListTimes>,
    /// Whether it is an older answer than what is held, so that it says nothing about what it lacks.
    is_stale: bool,
    confirm_after: Duration,
    kept: Kept,
}

impl Keeping<'_> {
    /// Keeps what the list says of each record that it shows.
    fn see_each(&mut self, compare: &mut Compare<'_>) -> Result<(), Error> {
        let Self { of, list, records, keys, known, previous, confirm_after, ref mut kept, .. } = *self;
        for (record, key) in records.iter().zip(keys) {
            let sighting = Sighting { of, list, record, key };
            match known.by_key.get(key) {
                None => {
                    sighting.add_record()?;
                    kept.versions += 1;
                }
                Some(held) => match sighting.change_of(held)? {
                    None => {
                        let (before, after) = (held.facts(), sighting.facts(held));
                        sighting.see_again(held)?;
                        kept.changed |= after.record_id != before.record_id;
                        kept.sighted |= after != before;
                    }
                    Some(_) if record.is_late(held, list) => {
                        kept.late += usize::from(sighting.add_late_version(held)?);
                    }
                    Some(Change { old, new }) => {
                        if sighting.contents().loses_rows(held.version, old, &new, compare)? {
                            kept.want_list_at(list.fetched_at + confirm_after);
                        }
                        let shown = if held.is_gone() { previous.map(|previous| previous.started_at) } else { None };
                        sighting.add_version(held, shown.unwrap_or(held.seen_started_at))?;
                        kept.versions += 1;
                    }
                },
            }
            if known.key_of_id.get(&record.id) != Some(key) {
                sighting.note_id()?;
            }
        }
        Ok(())
    }

    /// Keeps that there was this list, and gives what came of it.
    fn note_list(self, webhook_count: Option<i64>) -> Result<Kept, Error> {
        let Self {
            of: LinkRecords { tx, link_id, resource }, list, drift, records, previous, is_stale, mut kept, ..
        } = self;
        if kept.versions > 0 {
            drift.note(tx, resource)?;
        }
        kept.changed |= kept.versions + kept.late + kept.gone > 0;
        kept.sighted |= kept.changed;
        kept.change = tx.change()?;
        // One in which Belvo names no time was collected when it was fetched; so was one with a record for which it
        // names none, because that one is known since then.
        let is_told = records.iter().all(|record| record.collected(list.fetched_at).is_some());
        let collected_at = kept.collected_at.filter(|_| is_told);
        let is_as_old = |previous: ListTimes| collected_at.is_some() && previous.collected_at == collected_at;
        let is_news = kept.changed || !previous.is_some_and(is_as_old);
        tx.execute(
            "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, collected_at, item_count, webhook_count, changed, \
             news_seq, is_stale) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            args![
                link_id,
                resource.name,
                list.fetched_at,
                list.started_at,
                collected_at,
                records.len(),
                webhook_count,
                kept.versions + kept.gone > 0,
                is_news.then_some(kept.change),
                is_stale
            ],
        )?;
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::test_state::{LINK, TestState, job};
    use super::*;
    use crate::resources::employments;

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
        let state = TestState::new().await;
        let first = state.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        assert_eq!((first.versions, first.changed, first.sighted), (1, true, true));
        let again = state.list(10, &[job(1, "99000042", "2020-01-01", "null", 5)]).await;
        assert_eq!((again.versions, again.changed, again.sighted), (0, false, true));
        let same = state.list(20, &[job(1, "99000042", "2020-01-01", "null", 5)]).await;
        assert_eq!((same.versions, same.changed, same.sighted), (0, false, false));
    }

    #[tokio::test]
    async fn an_older_answer_brings_back_nothing_that_is_gone_and_no_older_id() {
        let state = TestState::new().await;
        let stays = |minute| job(1, "99000042", "2020-01-01", "null", minute);
        let goes = |end, minute| job(2, "99000077", "2021-01-01", end, minute);
        state.list(0, &[stays(10), goes("null", 10)]).await;
        state.list(100, &[stays(30)]).await;
        assert_eq!(state.list(200, &[stays(30)]).await.gone, 1);
        for (minutes, end) in [(210, "null"), (220, "\"2021-12-31\"")] {
            let late = state.list(minutes, &[stays(20), goes(end, 20)]).await;
            assert_eq!((late.versions, late.late), (0, 1), "{end}");
        }
        // A record that was collected long ago may come back in a list that is new.
        let back = state.list(230, &[stays(40), goes("null", 10)]).await;
        assert_eq!((back.versions, back.late), (1, 0));

        let renamed = state.list(240, &[job(3, "99000042", "2020-01-01", "null", 50)]).await;
        assert!(renamed.changed);
        let late = state.list(250, &[stays(20)]).await;
        assert_eq!((late.changed, late.sighted), (false, false));
        let ids: HashSet<String> = state.seen().await.into_iter().map(|(_, id, _)| id[..8].to_owned()).collect();
        assert_eq!(ids, HashSet::from(["00000003".to_owned(), "00000002".to_owned()]));
    }

    #[tokio::test]
    async fn a_broken_record_that_says_the_same_again_is_no_change() {
        let sound = job(1, "99000042", "2020-01-01", "null", 0);
        let nameless = sound.replace(r#""id":"00000001-0000-4000-8000-000000000000","#, r#""id":null,"#);
        let undated = sound.replace(r#""created_at":"2026-01-01T00:00:00.000Z""#, r#""created_at":null"#);
        for broken in [nameless, undated] {
            assert_ne!(broken, sound);
            let state = TestState::new().await;
            state.list(0, std::slice::from_ref(&sound)).await;
            state.list(10, std::slice::from_ref(&broken)).await;
            let again = state.list(20, &[broken]).await;
            assert_eq!((again.versions, again.changed, again.sighted), (0, false, false));
        }
    }

    #[tokio::test]
    async fn a_record_that_no_strict_reader_takes_is_the_same_in_every_list_and_keeps_nothing_else_from_ending() {
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        for odd in [r#""\ud800""#, r#"{"\udfff":["\ud800"]}"#, &deep] {
            let sound = |minute| job(1, "99000042", "2020-01-01", "null", minute);
            let broken = |minute, first: u32| {
                let items = format!(r#"[{{"x":{first}}},{odd},{{"x":{}}}]"#, 1 - first);
                sound(minute)
                    .replace(r#""employer_data":{"#, &format!(r#""z":{items},"employer_data":{{"name":{odd},"#))
            };
            let other = job(2, "99000077", "2021-01-01", "null", 0);
            let state = TestState::new().await;
            state.list(0, &[sound(0), other]).await;
            let lists = [(10, broken(1, 0)), (100, broken(2, 1)), (200, broken(3, 0))];
            let mut kept = Vec::new();
            for (minutes, broken) in lists {
                let Kept { versions, gone, .. } = state.list(minutes, &[broken]).await;
                kept.push((versions, gone));
            }
            assert_eq!(kept, [(1, 0), (0, 1), (0, 0)], "{odd}");
            let seen: HashSet<String> = state.seen().await.into_iter().map(|(_, id, _)| id[..8].to_owned()).collect();
            assert_eq!(seen, HashSet::from(["00000001", "00000002"].map(str::to_owned)), "{odd}");
            let foreign: LinkId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
            assert!(Record::read(&employments::RESOURCE, &foreign, &broken(1, 0)).is_err(), "{odd}");
        }
    }

    #[tokio::test]
    async fn a_time_that_belvo_cannot_have_collected_at_counts_as_none_and_freezes_nothing() {
        let state = TestState::new().await;
        let month_of = |month, end| job(1, "99000042", "2020-01-01", end, month);
        let slip = month_of(0, "null").replace("\"collected_at\":\"2026", "\"collected_at\":\"2062");
        let first = state.list(5, std::slice::from_ref(&slip)).await;
        assert_eq!((first.versions, first.collected_at), (1, None));
        assert_eq!(state.versions().await, [(5, false)], "known since it was fetched");
        let honest = state.list(20, &[month_of(10, "\"2020-12-31\"")]).await;
        assert_eq!((honest.versions, honest.late, honest.sighted), (1, 0, true));
        assert!(honest.collected_at.is_some());
        // Nor does a later slip, among other records or alone.
        let other = job(2, "99000077", "2021-01-01", "null", 30);
        let both = state.list(40, &[slip, other.clone()]).await;
        assert_eq!((both.versions, both.late), (2, 0));
        let again = state.list(60, &[month_of(50, "\"2021-12-31\""), other]).await;
        assert_eq!((again.versions, again.late), (1, 0));
        // A Belvo that is months ahead is believed.
        let ahead = month_of(0, "null").replace("\"collected_at\":\"2026", "\"collected_at\":\"2027");
        assert!(state.list(70, &[ahead]).await.collected_at.is_some());
        assert_eq!(state.list(80, &[month_of(55, "\"2022-12-31\"")]).await.late, 1);
    }

    #[tokio::test]
    async fn a_job_that_is_gone_and_comes_back_with_equal_content_begins_a_new_version() {
        let state = TestState::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        let both = [stays.clone(), goes.clone()];
        state.list(10, &both).await;
        state.list(20, std::slice::from_ref(&stays)).await;
        // In time: nothing happened.
        assert!(!state.list(30, &both).await.changed);
        state.list(40, std::slice::from_ref(&stays)).await;
        assert_eq!(state.list(100, std::slice::from_ref(&stays)).await.gone, 1);
        assert!(!state.list(200, std::slice::from_ref(&stays)).await.changed, "it is gone once");
        let back = state.list(300, &both).await;
        assert_eq!((back.versions, back.changed), (1, true));
        let mut versions = state.versions().await;
        versions.sort_unstable();
        // When Belvo collected it, and never earlier than the last list that lacked it.
        assert_eq!(versions, [(0, false), (0, false), (100, true), (200, false)]);
        assert_eq!(state.seen().await.iter().map(|seen| seen.2).max(), Some(3));
    }

    #[test]
    fn a_record_of_another_link_is_foreign() {
        let other: LinkId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
        let record = job(1, "99000042", "2020-01-01", "null", 0);
        assert!(Record::read(&employments::RESOURCE, &other, &record).is_err());
        assert!(Record::read(&employments::RESOURCE, &other, r#"{"id":"1","link":null}"#).is_ok());
        assert!(Record::read(&employments::RESOURCE, &other, "not JSON").is_ok(), "kept, and listed as rejected");
    }

    #[tokio::test]
    async fn a_job_keeps_its_key_beside_one_alike_that_is_gone() {
        for goes in [1, 2] {
            let state = TestState::new().await;
            let stays = 3 - goes;
            let alike = |id| job(id, "99000042", "2020-01-01", "null", 0);
            state.list(0, &[alike(goes), alike(stays)]).await;
            let key_of = async |id: u32| {
                let seen = state.seen().await;
                seen.into_iter().find(|(_, found, _)| found.starts_with(&format!("{id:08}"))).unwrap().0
            };
            let key = key_of(stays).await;
            for minutes in [10, 80] {
                state.list(minutes, &[alike(stays)]).await;
            }
            // Another id and another content at once.
            state.list(90, &[job(3, "99000042", "2020-01-01", "\"2020-12-31\"", 9)]).await;
            assert_eq!(key_of(3).await, key, "{goes} is gone");
        }
    }
}
